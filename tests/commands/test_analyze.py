from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file

from aalp.cli import main
from aalp.commands import run_analysis
from aalp.commands.loading import load
from aalp.data.sources import load_source
from aalp.errors import RunError
from aalp.method.threat import Linf
from aalp.store.run import free_path

TABLES = ("attacks", "confusion", "contributions", "eps_curve", "images", "per_class", "top_k", "training")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, train_words: list[str]) -> Path:
    """A comparison of two objectives with two seeds; not to be written to."""
    run = tmp_path_factory.mktemp("compare") / "both"
    words = ["--run", str(run), "--objectives", "alp,aalp", "--seeds", "0,1", "--evaluation.attacks", "fgsm,pgd-2,cw-2"]
    assert main(["compare", *train_words[1:], *words]) == 0
    return run


@pytest.fixture
def copied(comparison: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(comparison, tmp_path / "both"))


def record_of(run: Path, number: int = 1) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "analyses" / f"best-{number:03d}" / "analysis.json").read_text())
    return record


def test_a_comparison_is_analysed_run_by_run(copied: Path, tiny_npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", str(copied), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    source = load_source(f"npz:{tiny_npz}")
    for name in ("alp-seed0", "alp-seed1", "aalp-seed0", "aalp-seed1"):
        folder = copied / name / "analyses" / "best-001"
        record = record_of(copied / name)
        kinds = ("csv", "parquet")
        files = {f"{table}.{kind}" for table in TABLES for kind in kinds} | {"analysis.json", "gallery.safetensors"}
        assert {path.name for path in folder.iterdir()} == files
        assert (record["kind"], record["images"], record["attack"]) == ("analysis", 18, "pgd-20")
        assert record["threat"] == {"norm": "Linf", "eps": 0.1}
        assert record["data"]["digest"] == source.digest
        assert record["model"]["objective"] == name.partition("-")[0]
        assert record["features"] == 200
        assert record["classes"] == list(source.classes)
    observations = json.loads((copied / "observations.json").read_text())
    assert observations["kind"] == "observations"
    assert [run["name"] for run in observations["runs"]] == ["alp-seed0", "alp-seed1", "aalp-seed0", "aalp-seed1"]
    numbers = {found["number"] for found in observations["observations"]}
    assert numbers == {1, 2}
    for found in observations["observations"]:
        assert found["sentence"] in out
        assert isinstance(found["holds"], bool)
    assert "nothing is said on at and standard" in out
    rows = list(csv.DictReader((copied / "observations-runs.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1", "0", "1"]
    assert float(rows[0]["n90"]) == record_of(copied / "alp-seed0")["contributions"]["clean"]["predicted"]["n90"]


def test_the_figures_of_a_record_agree_with_each_other_and_with_the_network(copied: Path, tiny_npz: Path) -> None:
    run = copied / "aalp-seed0"
    assert main(["evaluate", str(run), "--attacks", "clean", "--quiet"]) == 0
    elsewhere = json.loads((run / "evaluations" / "best-001.json").read_text())
    elsewhere |= {"data": {**elsewhere["data"], "name": "npz:other.npz", "digest": "other"}, "attacks": [{"name": "fgsm"}]}
    (run / "evaluations" / "other.json").write_text(json.dumps(elsewhere))
    assert main(["analyze", str(run), "--quiet"]) == 0
    record, folder = record_of(run), run / "analyses" / "best-001"
    table = parquet.read_table(folder / "images.parquet").to_pydict()
    test, classifier = load_source(f"npz:{tiny_npz}").test, load(run, "best")
    images = test.read(torch.arange(18)).float() / 255
    assert table["clean_prediction"] == classifier(images).argmax(1).tolist()
    right = [label == predicted for label, predicted in zip(table["label"], table["clean_prediction"], strict=True)]
    stands = [
        before and label == predicted
        for before, label, predicted in zip(right, table["label"], table["adversarial_prediction"], strict=True)
    ]
    assert record["top_k"][-1] == {"k": 200, "clean": sum(right) / 18, "robust": sum(stands) / 18}
    assert record["eps_curve"][0] == {"eps": 0.0, "accuracy": sum(right) / 18}
    assert sum(row["images"] for row in record["per_class"]) == 18
    assert sum(row["images"] * row["robust"] for row in record["per_class"]) == pytest.approx(sum(stands))
    assert sum(map(sum, record["confusion"])) == 18
    clean = record["contributions"]["clean"]["predicted"]
    assert clean["n90"] == pytest.approx(sum(table["n90_clean_predicted"]) / 18)
    # n90 is about where the curve passes 90 %.
    assert clean["curve"] == sorted(clean["curve"])
    assert clean["curve"][-1] == pytest.approx(1.0)
    assert len(clean["curve"]) == len(clean["curve_features"]) <= 64
    # The attacks of the newest evaluation of these weights that attacked the run's own data.
    assert [attack["name"] for attack in record["attacks"]] == ["fgsm", "pgd-2", "cw-2"]
    evaluation = json.loads((run / "evaluations" / "test.json").read_text())
    assert [attack["accuracy"] for attack in record["attacks"]] == [a["accuracy"] for a in evaluation["attacks"]]
    # What training logged, epoch by epoch.
    assert [row["epoch"] for row in record["training"]] == [1, 2]
    weights = ("weight_mean", "weight_low", "weight_median", "weight_high")
    assert all(row[name] > 0 for row in record["training"] for name in (*weights, "misclassified_rate"))
    assert all(0 <= row[name] <= 1 for row in record["training"] for name in ("conflict_rate", "conflict_rate_clean"))
    # The gallery: images in the ball, and what the network says of them.
    gallery = load_file(folder / record["gallery"]["file"])
    assert gallery["clean"].shape == gallery["adversarial"].shape == (18, 1, 8, 8)
    assert Linf(0.1).contains(gallery["adversarial"], gallery["clean"]).all()
    for side in ("clean", "adversarial"):
        assert record["gallery"][f"{side}_predictions"] == classifier(gallery[side]).argmax(1).tolist()
    assert record["gallery"]["labels"][:4] == [0, 1, 2, 0]


def test_breaks_of_weights_that_are_no_more_are_not_told(copied: Path) -> None:
    run = copied / "alp-seed0"
    evaluation = run / "evaluations" / "test.json"
    early = json.loads(evaluation.read_text())
    early["model"]["epoch"] += 5
    evaluation.write_text(json.dumps(early))
    assert main(["analyze", str(run), "--images", "6", "--quiet"]) == 0
    assert (record_of(run)["attacks"], record_of(run)["attacks_from"]) == ([], None)


def test_breaks_of_the_same_images_by_another_name_are_told(copied: Path) -> None:
    run = copied / "alp-seed0"
    evaluation = run / "evaluations" / "test.json"
    record = json.loads(evaluation.read_text())
    record["data"]["name"] = "npz:../tiny.npz"  # as seen from another folder
    evaluation.write_text(json.dumps(record))
    assert main(["analyze", str(run), "--images", "6", "--quiet"]) == 0
    assert [attack["name"] for attack in record_of(run)["attacks"]] == ["fgsm", "pgd-2", "cw-2"]


def test_a_run_is_attacked_again_only_if_something_changed(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied / "alp-seed0"
    words = ["analyze", str(run), "--images", "6"]
    assert main(words) == 0
    assert "pgd-20" in capsys.readouterr().err
    first = (run / "analyses" / "best-001" / "analysis.json").read_bytes()
    assert main(words) == 0
    assert "pgd-20:" not in capsys.readouterr().err
    assert [path.name for path in (run / "analyses").iterdir()] == ["best-001"]
    assert (run / "analyses" / "best-001" / "analysis.json").read_bytes() == first
    assert [path.name for path in run.glob("observations*.json")] == ["observations.json"]
    # Other images, other weights, another evaluation: each a new analysis beside the old ones.
    assert main(["analyze", str(run), "--images", "9", "--quiet"]) == 0
    assert main(["analyze", str(run), "--images", "6", "--weights", "last", "--quiet"]) == 0
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--weights", "best", "--quiet"]) == 0
    assert main([*words, "--quiet"]) == 0
    assert sorted(path.name for path in (run / "analyses").iterdir()) == ["best-001", "best-002", "best-003", "last-001"]
    assert [attack["name"] for attack in record_of(run, 3)["attacks"]] == ["fgsm"]
    assert (run / "analyses" / "best-001" / "analysis.json").read_bytes() == first
    # Nor are the first statements overwritten by those on other settings.
    assert json.loads((run / "observations.json").read_text())["images"] == 6
    assert json.loads((run / "observations-001.json").read_text())["images"] == 9


def test_an_analysis_that_another_process_wrote_meanwhile_is_left_as_it_is(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = copied_run / "analyses" / "best-001" / "analysis.json"

    def taken_at_once(*words: Any) -> Path:
        path = free_path(*words)
        path.mkdir(parents=True)
        theirs.write_text("another's")
        return path

    monkeypatch.setattr(run_analysis, "free_path", taken_at_once)
    assert main(["analyze", str(copied_run), "--images", "6", "--quiet"]) == 0
    assert theirs.read_text() == "another's"
    assert record_of(copied_run, 2)["images"] == 6


def test_an_analysis_that_the_disk_refused_leaves_nothing(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its tables stayed without a record, and a second one got the next number."""

    def refused(path: Path, *_words: Any) -> None:
        raise RunError(f"'{path}' could not be written: No space left on device; free space or choose another folder")

    run = copied / "alp-seed0"
    with monkeypatch.context() as full:
        full.setattr(run_analysis, "write_tensors", refused)
        assert main(["analyze", str(run), "--quiet"]) == 2
    assert "No space left" in capfd.readouterr().err
    assert list((run / "analyses").iterdir()) == []
    # What was killed when all was written but the name is no analysis, and goes with the next one.
    assert main(["analyze", str(run), "--quiet"]) == 0
    (run / "analyses" / "best-001").rename(run / "analyses" / ".best-001.killed.partial")
    assert main(["analyze", str(run), "--quiet"]) == 0
    assert [path.name for path in (run / "analyses").iterdir()] == ["best-001"]


def test_runs_from_anywhere_stand_side_by_side(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "elsewhere" / "mine"
    shutil.copytree(copied / "alp-seed0", moved)
    shutil.rmtree(moved / "evaluations")
    (moved / "metrics.csv").unlink()
    out = tmp_path / "out"
    words = ["analyze", str(moved), str(copied / "aalp-seed0"), str(moved), "--images", "5", "--out", str(out), "--quiet"]
    assert main(words) == 0
    text = capsys.readouterr().out
    record = json.loads((out / "observations.json").read_text())
    assert [run["group"] for run in record["runs"]] == ["alp", "aalp"]
    assert all(found["holds"] is None for found in record["observations"])
    assert "One seed does not show that aalp needs fewer features than alp" in text
    # What a run does not have is left out, and said.
    analysis = record_of(moved)
    assert (analysis["attacks"], analysis["attacks_from"], analysis["training"]) == ([], None, [])
    assert "Not judged: under alp misclassified samples carry more than their share of the pairing loss in training" in text
    assert not (tmp_path / "observations.json").exists()


@pytest.mark.parametrize("named", [".", "../link"])
def test_a_run_named_by_another_word_than_its_folder_is_called_by_its_folder(
    named: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "link").symlink_to(copied / "aalp-seed0")
    monkeypatch.chdir(copied / "aalp-seed0")
    assert main(["analyze", named, "../alp-seed0", "--images", "4", "--quiet", "--out", ".."]) == 0
    record = json.loads((copied / "observations.json").read_text())
    assert [run["name"] for run in record["runs"]] == ["aalp-seed0", "alp-seed0"]
    assert main(["report", named, "../alp-seed0", "--out", "page.html"]) == 0
    assert "is not written down yet" not in Path("page.html").read_text()


def test_runs_that_held_out_other_numbers_of_images_are_said_to_differ(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyze", str(copied), "--images", "5", "--quiet"]
    for change, told in (({"workers": 1}, False), ({"validation": 9}, True)):
        for config in copied.glob("aalp-seed*/config.yaml"):
            options = yaml.safe_load(config.read_text())
            options["data_options"] |= change
            config.write_text(yaml.safe_dump(options))
        assert main(words) == 0
        assert ("the runs also differ in data_options" in capsys.readouterr().out) is told


def test_runs_of_a_comparison_that_are_not_trained_are_left_out_aloud(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "aalp-seed1" / "weights")
    # Stopped before its last epoch: what it has so far is no second seed of ALP.
    log = copied / "alp-seed1" / "metrics.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert main(["analyze", str(copied), "--images", "4", "--quiet"]) == 0
    assert "left out, not trained to the end or without best weights: aalp-seed1, alp-seed1" in capsys.readouterr().err
    runs = json.loads((copied / "observations.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["alp-seed0", "aalp-seed0"]


def test_a_named_run_that_is_not_trained_to_the_end_is_said_to_be_so(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = copied / "alp-seed1" / "metrics.csv"
    epochs = len(log.read_text().splitlines()) - 1
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert main(["analyze", str(copied / "alp-seed1"), "--images", "4", "--quiet"]) == 0
    assert f"alp-seed1' has not come to its end: {epochs - 1} of {epochs} epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ("runs", "aalp analyze --help")),
        (["nosuch"], ("'nosuch' does not exist", "aalp train")),
        (["COPY/alp-seed0", "--images", "0"], ("images is 0", "at least 1")),
        (["COPY/alp-seed0", "--weights", "worst"], ("weights", "worst")),
        (["COPY/alp-seed0", "--eps", "1"], ("--eps",)),
        (["COPY/empty"], ("COPY/empty", "has no trained run with best weights yet")),
        (["COPY/torn"], ("metrics.csv", "is not a readable training log")),
        (["COPY/threatless"], ("config.yaml", "no threat")),
        (["COPY/moved"], ("there is no file 'gone.npz'", "was trained: run this there)")),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    words: list[str], parts: tuple[str, ...], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "empty").mkdir()
    (copied / "empty" / "config.yaml").write_text("data: digits\n")
    shutil.copytree(copied / "alp-seed0", copied / "torn")
    (copied / "torn" / "metrics.csv").write_text("epoch,loss\n1,high\n")
    shutil.copytree(copied / "alp-seed0", copied / "threatless")
    config = (copied / "threatless" / "config.yaml").read_text()
    (copied / "threatless" / "config.yaml").write_text(config.replace("threat:", "thread:"))
    shutil.copytree(copied / "alp-seed0", copied / "moved")
    (copied / "moved" / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(config) | {"data": "npz:gone.npz"}))
    assert main(["analyze", *(word.replace("COPY", str(copied)) for word in words), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(part.replace("COPY", str(copied)) in err for part in parts), err
    assert not list(copied.rglob("analyses"))
    assert not list(copied.rglob("observations*"))
