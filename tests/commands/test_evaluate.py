from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

from aalp.cli import main
from aalp.commands import evaluate as evaluate_command
from aalp.commands.evaluation_record import report
from aalp.commands.loading import load
from aalp.commands.opening import sampled
from aalp.data.sources import load_source
from aalp.data.split import ResidentSplit
from aalp.evaluation.robustness import evaluate, wilson_interval
from aalp.method.precision import multiplies_bfloat16
from aalp.method.threat import Linf
from aalp.store.records import SCHEMA

WORDS = ["--attacks", "fgsm,pgd-3,cw-3", "--quiet=true"]


@pytest.fixture(scope="module")
def result(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Record and table of the finished run at an eps at which some images stand and some do not."""
    out = tmp_path_factory.mktemp("evaluations")
    assert main(["evaluate", str(tiny_run), *WORDS, "--eps", "0.3", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["best-001.json", "best-001.parquet"]
    table = parquet.read_table(out / "best-001.parquet").to_pydict()
    return json.loads((out / "best-001.json").read_text()), table


def test_a_record_has_all_that_is_needed_to_judge_and_repeat_it(
    result: tuple[dict[str, Any], dict[str, list[Any]]], tiny_run: Path, tiny_npz: Path
) -> None:
    record, _ = result
    source = load_source(f"npz:{tiny_npz}")
    assert (record["schema"], record["kind"], record["images"], record["seed"]) == (SCHEMA, "evaluation", 18, 0)
    assert record["threat"] == {"norm": "Linf", "eps": 0.3}
    assert record["data"] == {
        "name": f"npz:{tiny_npz}",
        "split": "test",
        "digest": source.digest,
        "split_images": 18,
    }
    assert record["weights"] == str(tiny_run / "weights" / "best.safetensors")
    assert record["model"]["objective"] == "aalp"
    assert (record["model"]["method"]["distance"], record["model"]["method"]["pairing_weight"]) == ("squared", 1.0)
    assert record["model"]["epoch"] in (1, 2)
    assert record["command"].startswith("aalp ")
    assert record["environment"]["versions"]["pyautoattack"]
    for attack, steps in zip(record["attacks"], (1, 3, 3), strict=True):
        assert attack["settings"]["steps"] == steps
        assert attack["seconds"] > 0


def test_the_figures_of_a_record_and_its_table_agree(
    result: tuple[dict[str, Any], dict[str, list[Any]]],
) -> None:
    record, table = result
    names = ["fgsm", "pgd-3", "cw-3"]
    assert list(table) == [
        *("index", "label", "clean_prediction", "broken_by"),
        *(f"stands_{name}" for name in names),
        *("n90", "n90_adversarial", "conflict_cosine", "pairing_distance"),
    ]
    count = record["images"]
    assert all(len(column) == count for column in table.values())
    assert table["index"] == list(range(count))
    right = [label == predicted for label, predicted in zip(table["label"], table["clean_prediction"], strict=True)]
    assert record["clean"] == pytest.approx(sum(right) / count)
    assert [attack["name"] for attack in record["attacks"]] == names
    for attack in record["attacks"]:
        assert attack["accuracy"] == pytest.approx(sum(table[f"stands_{attack['name']}"]) / count)
    stands = [right, *(table[f"stands_{name}"] for name in names)]
    worst = [all(column[row] for column in stands) for row in range(count)]
    assert record["robust"] == pytest.approx(sum(worst) / count)
    assert [broken is None for broken in table["broken_by"]] == worst
    assert sum(record["broken_by"].values()) == count - sum(worst)
    assert {name: table["broken_by"].count(name) for name in ("clean", *names)} == record["broken_by"]
    for name in ("clean", "robust"):
        successes = round(record[name] * count)
        assert record["intervals"][name] == pytest.approx(wilson_interval(successes, count))
    assert record["measures"]["on"] == "pgd-3"
    for name in ("n90", "n90_adversarial", "conflict_cosine", "pairing_distance"):
        assert record["measures"][name] == pytest.approx(math.fsum(table[name]) / count, rel=1e-4)
    # The run and the eps are such that there is something to add up.
    assert 0 < sum(worst) < count


def test_the_library_gives_the_same_figures(
    result: tuple[dict[str, Any], dict[str, list[Any]]], tiny_run: Path, tiny_npz: Path
) -> None:
    record, table = result
    test = load_source(f"npz:{tiny_npz}").test
    evaluation = evaluate(load(tiny_run), test, threat=Linf(0.3), attacks=["fgsm", "pgd-3", "cw-3"])
    assert evaluation.clean_accuracy == pytest.approx(record["clean"])
    assert evaluation.robust_accuracy == pytest.approx(record["robust"])
    for found in evaluation.results:
        assert found.standing.tolist() == table[f"stands_{found.name}"]


def test_what_is_not_given_comes_from_the_run_and_records_are_numbered(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["evaluate", str(copied_run), *WORDS]) == 0
    assert main(["evaluate", str(copied_run), "--weights", "last", "--images", "5", *WORDS]) == 0
    capsys.readouterr()
    folder = copied_run / "evaluations"
    stems = ["best-001", "best-002", "last-001"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{s}.{kind}" for s in stems for kind in ("json", "parquet")]
    first, second, last = (json.loads((folder / f"{stem}.json").read_text()) for stem in stems)
    assert first["threat"] == {"norm": "Linf", "eps": 0.1}
    assert {name: first[name] for name in ("clean", "robust", "broken_by")} == {
        name: second[name] for name in ("clean", "robust", "broken_by")
    }
    assert last["images"] == 5
    assert last["weights"].endswith("last.safetensors")
    sample = parquet.read_table(folder / "last-001.parquet").to_pydict()["index"]
    assert len(set(sample)) == 5
    assert sample == sorted(sample)
    assert sample != list(range(5))


def test_one_data_option_leaves_the_other_ones_as_the_run_has_them(copied_run: Path, tmp_path: Path) -> None:
    file = copied_run / "config.yaml"
    file.write_text(file.read_text().replace("  images: null", "  images: 9"))
    words = ["--data_options.workers", "0", "--attacks", "clean", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(copied_run), *words]) == 0
    assert json.loads((tmp_path / "out" / "best-001.json").read_text())["data"]["split_images"] == 9


def test_a_record_that_another_process_wrote_meanwhile_is_left_as_it_is(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = copied_run / "evaluations", evaluate_command.run_evaluation
    folder.mkdir(exist_ok=True)

    def meanwhile(*words: Any, **options: Any) -> Any:
        for name in ("best-001.parquet", "best-001.json"):
            (folder / name).write_text("another's")
        return real(*words, **options)

    monkeypatch.setattr(evaluate_command, "run_evaluation", meanwhile)
    assert main(["evaluate", str(copied_run), *WORDS]) == 0
    assert {(folder / name).read_text() for name in ("best-001.parquet", "best-001.json")} == {"another's"}
    assert json.loads((folder / "best-002.json").read_text())["images"] == 18
    assert (folder / "best-002.parquet").is_file()


def test_the_table_on_the_screen_says_what_broke_what(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tiny_run), *WORDS, "--eps", "0.3", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads((tmp_path / "best-001.json").read_text())
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    for name, accuracy in (("clean", record["clean"]), ("worst case", record["robust"])):
        assert f"{accuracy:.1%}" in lines[name]
    for attack in record["attacks"]:
        assert f"{attack['accuracy']:.1%}" in lines[attack["name"]]
        broken = record["broken_by"][attack["name"]]
        assert not broken or lines[attack["name"]].endswith(f" {broken}")
    assert out.endswith(f"record: {tmp_path / 'best-001.json'}\n")


def test_an_attack_that_ran_alone_and_inside_autoattack_has_what_each_of_the_two_broke_first() -> None:
    part = {"name": "apgd-ce", "accuracy": 0.5, "attacked": 8, "seconds": 1.0}
    record = {
        "images": 10,
        "clean": 0.8,
        "robust": 0.5,
        "attacks": [{**part, "parts": []}, {**part, "name": "autoattack", "parts": [part, {**part, "name": "square"}]}],
        "broken_by": {"clean": 2, "apgd-ce": 3, "autoattack/apgd-ce": 0, "autoattack/square": 1},
        "threat": {"norm": "Linf", "eps": 0.1},
        "data": {"name": "digits", "split": "test"},
        "weights": "best.safetensors",
        "path": "test.json",
    }
    lines = report(record).splitlines()
    assert lines[0].startswith("10 test images of digits, ")
    assert report({**record, "images": 1}).startswith("1 test image of digits, ")
    assert [line.split()[-1] for line in lines if line.startswith("  ")] == ["1.0", "1"]
    assert [line.split()[-1] for line in lines if line.startswith("apgd-ce")] == ["3"]


def test_an_evaluation_without_an_attack_has_no_robust_accuracy(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--attacks", "clean", "--quiet", "--tracker", "tensorboard", "--out", str(tmp_path)]
    assert main(["evaluate", str(copied_run), *words]) == 0
    out = capsys.readouterr().out
    assert "worst case" not in out
    assert "nothing was attacked: no robust accuracy" in out
    record = json.loads((tmp_path / "best-001.json").read_text())
    assert 0 < record["clean"] < 1
    assert record["robust"] is record["intervals"]["robust"] is None
    assert not math.isnan(record["intervals"]["clean"][0])
    events = b"".join(file.read_bytes() for file in (copied_run / "tensorboard").glob("events.*"))
    assert b"test/clean" in events
    assert b"test/robust" not in events


def test_another_norm_and_fractions_are_understood(tiny_run: Path, tmp_path: Path) -> None:
    words = ["--norm", "l2", "--eps", "128/255", "--attacks", "pgd-2", "--quiet=true", "--out", str(tmp_path)]
    assert main(["evaluate", str(tiny_run), *words]) == 0
    record = json.loads((tmp_path / "best-001.json").read_text())
    assert record["threat"]["norm"] == "L2"
    assert record["threat"]["eps"] == pytest.approx(128 / 255)


@pytest.mark.parametrize("exact", [False, True])
def test_autoattack_is_recorded_with_its_parts(
    exact: bool,
    tiny_arrays: Callable[..., dict[str, np.ndarray]],
    train_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.savez(tmp_path / "four.npz", **tiny_arrays(classes=4))  # of fewer the package knows nothing
    (tmp_path / "linear_nets.py").write_text(
        "from torch import nn\n\n\ndef linear(num_classes, image_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--data", f"npz:{tmp_path / 'four.npz'}", "--model", "linear_nets:linear", "--run", str(tmp_path / "run")]
    assert main([*train_words, *words]) == 0
    words = ["--attacks", "autoattack", "--images", "3", "--eps", "0.3", "--quiet=true", "--out", str(tmp_path)]
    words += ["--exact", str(exact).lower(), "--trust-model-code"]
    assert main(["evaluate", str(tmp_path / "run"), *words]) == 0
    record = json.loads((tmp_path / "best-001.json").read_text())
    (attack,) = record["attacks"]
    assert [part["name"] for part in attack["parts"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert attack["settings"]["by"] == ("pyautoattack" if exact else "aalp")
    searched = [part["search"] for part in attack["parts"]]
    assert searched[2:] == ["float32", "float32"]
    rough = not exact and multiplies_bfloat16(torch.device("cpu"))
    assert searched[:2] == ["bf16" if rough else "float32"] * 2
    accuracies = [record["clean"], *(part["accuracy"] for part in attack["parts"])]
    assert accuracies == sorted(accuracies, reverse=True)
    assert attack["accuracy"] == accuracies[-1] == record["robust"]
    assert [part["attacked"] for part in attack["parts"]] == [round(3 * accuracy) for accuracy in accuracies[:-1]]
    table = parquet.read_table(tmp_path / "best-001.parquet").to_pydict()
    assert sum(table["stands_autoattack"]) == round(3 * record["robust"])


def test_the_cheap_gates_are_recorded_and_a_failed_one_is_told_on_stderr(
    result: tuple[dict[str, Any], dict[str, list[Any]]],
    copied_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gates = result[0]["gates"]
    assert [gate["name"] for gate in gates] == ["output is logits", "deterministic", "gradient exists"]
    assert all(gate["passed"] for gate in gates)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # Quiet while it is built and probed, on two images; or until the gates before the attacks have passed.
    Path("noisy_factory.py").write_text(
        "import torch\nfrom aalp.models.small_cnn import SmallCNN\n\n\n"
        "class Noisy(SmallCNN):\n    passes, first = 0, 0\n\n    def forward(self, images):\n"
        "        self.passes += len(images) > 2\n"
        "        noise = 0.1 * torch.randn_like(images) if self.passes > self.first else 0\n"
        "        return super().forward(images + noise)\n\n\n"
        "def make(num_classes, image_shape):\n    return Noisy(num_classes, image_shape)\n\n\n"
        "def later(num_classes, image_shape):\n    network = Noisy(num_classes, image_shape)\n"
        "    network.first = 16\n    return network\n"
    )
    for factory, when, passed in (("make", "", [True, False, None]), ("later", "after the attacks: ", [True, False, True])):
        words = ["--model", f"noisy_factory:{factory}", "--attacks", "fgsm", "--quiet", "--out", factory]
        assert main(["evaluate", str(copied_run), *words]) == 0
        err = capsys.readouterr().err
        assert err.startswith(f"aalp: warning: gate failed: deterministic ({when}")
        assert len(err.splitlines()) == 1
        record = json.loads(Path(f"{factory}/best-001.json").read_text())
        assert [gate["passed"] for gate in record["gates"]] == passed


def test_all_images_are_those_in_memory_and_a_sample_is_some_of_them() -> None:
    split = ResidentSplit(torch.rand(9, 1, 2, 2), torch.arange(9))
    for wanted in (None, 9, 20):
        positions, images = sampled(split, wanted)
        assert positions.tolist() == list(range(9))
        assert images is split  # a copy of a large data set may be more than the memory holds
    positions, images = sampled(split, 4)
    assert images.labels.tolist() == positions.tolist() == sorted(set(positions.tolist()))
    assert len(images) == 4
