from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml

from aalp.cli import main
from aalp.method.guided_dropout import GuidedDropout

FIGURES = ("clean", "fgsm", "pgd-2", "robust")


def test_every_cell_is_a_run_with_its_record_and_the_comparison_is_written_twice(
    comparison: tuple[Path, list[str]],
) -> None:
    run, _ = comparison
    cells = [f"{name}-seed{seed}" for name in ("at", "aalp") for seed in (0, 1)]
    assert sorted(path.name for path in run.iterdir()) == sorted([*cells, "config.yaml", "comparison.json", "comparison.md"])
    record = json.loads((run / "comparison.json").read_text())
    assert record["kind"] == "comparison"
    assert record["seeds"] == [0, 1]
    assert sorted((cell["objective"], cell["seed"]) for cell in record["cells"]) == [
        ("aalp", 0),
        ("aalp", 1),
        ("at", 0),
        ("at", 1),
    ]
    for cell in record["cells"]:
        path = run / f"{cell['objective']}-seed{cell['seed']}" / "evaluations" / "test.json"
        own = json.loads(path.read_text())
        assert own["model"]["objective"] == cell["objective"]
        assert own["model"]["seed"] == cell["seed"]
        assert cell["figures"]["clean"] == own["clean"]
        assert cell["figures"]["robust"] == own["robust"]
        assert cell["figures"]["fgsm"] == own["attacks"][0]["accuracy"]
    for name in ("at", "aalp"):
        for figure in FIGURES:
            values = [
                next(c["figures"][figure] for c in record["cells"] if (c["objective"], c["seed"]) == (name, seed))
                for seed in (0, 1)
            ]
            row = record["table"][name][figure]
            assert row["values"] == values
            assert row["mean"] == pytest.approx(statistics.fmean(values))
            assert row["deviation"] == pytest.approx(statistics.stdev(values))


def test_a_cell_is_the_run_that_train_makes(comparison: tuple[Path, list[str]], tiny_run: Path) -> None:
    run, _ = comparison
    for which in ("last", "best"):
        ours = run / "aalp-seed0" / "weights" / f"{which}.safetensors"
        assert ours.read_bytes() == (tiny_run / "weights" / f"{which}.safetensors").read_bytes()


def test_the_table_is_printed_as_it_is_written(comparison: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    run, words = comparison
    assert main(words) == 0  # all is done: it only tells
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads((run / "comparison.json").read_text())
    markdown = (run / "comparison.md").read_text()
    for name in ("at", "aalp"):
        row = record["table"][name]["robust"]
        shown = f"{row['mean'] * 100:.1f} +- {row['deviation'] * 100:.1f}"
        assert shown in out
        assert shown in markdown
        for value in row["values"]:
            assert f"{value * 100:.1f}" in out
    assert "aalp minus at, robust" in out
    assert "| objective |" in markdown
    assert str(run / "comparison.json") in out


def test_objectives_may_come_in_any_order(tmp_path: Path, train_words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        *train_words[1:],
        "--run",
        str(tmp_path / "run"),
        "--objectives",
        "aalp,standard",
        "--seeds",
        "0",
    ]
    assert main([*words, "--evaluation.attacks", "fgsm", "--training.epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[4:6]] == ["aalp", "standard"]


@pytest.fixture
def variant_words(train_words: list[str], tmp_path: Path) -> list[str]:
    """A comparison on validation images of AT with two variants of AALP, in a YAML file."""
    config = tmp_path / "study.yaml"
    config.write_text(
        "objectives: at\n"
        "seeds: 0\n"
        "evaluation: {attacks: pgd-2, split: validation}\n"
        "variants:\n"
        "  heavy: {objective: aalp, method: {pairing_weight: 2, dropout: {fraction: 0.5}}}\n"
        "  slow: {objective: alp, training: {lr: 1e-4}}\n"
    )
    return ["compare", "--config", str(config), *train_words[1:], "--run", str(tmp_path / "run")]


def test_variants_are_rows_with_their_own_options(variant_words: list[str], tmp_path: Path) -> None:
    assert main(variant_words) == 0
    record = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert list(record["table"]) == ["at", "heavy", "slow"]
    assert record["split"] == "validation"
    heavy = yaml.safe_load((tmp_path / "run" / "heavy-seed0" / "config.yaml").read_text())
    assert heavy["objective"] == "aalp"
    assert heavy["method"]["pairing_weight"] == 2.0
    assert heavy["method"]["dropout"]["fraction"] == 0.5
    assert heavy["method"]["dropout"]["probability"] == GuidedDropout().probability
    slow = yaml.safe_load((tmp_path / "run" / "slow-seed0" / "config.yaml").read_text())
    at = yaml.safe_load((tmp_path / "run" / "at-seed0" / "config.yaml").read_text())
    assert slow["training"] == {**at["training"], "lr": 1e-4}
    own = json.loads((tmp_path / "run" / "heavy-seed0" / "evaluations" / "validation.json").read_text())
    assert own["data"]["split"] == "validation"
    assert own["data"]["validation_digest"]
    assert own["images"] == own["data"]["split_images"] == record["cells"][0]["images"]


def test_the_comparison_s_numbers_are_for_the_variants_that_have_them(variant_words: list[str], tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    shared = "method: {dropout: {fraction: 0.4}}\n"
    config.write_text(shared + config.read_text() + "  strong: {objective: trades, method: {beta: 3}}\n")
    assert main(variant_words) == 0
    strong = yaml.safe_load((tmp_path / "run" / "strong-seed0" / "config.yaml").read_text())
    assert strong["method"]["beta"] == 3.0


def test_an_option_newer_than_the_comparison_had_its_default_then(copied_comparison: tuple[Path, list[str]]) -> None:
    copy, words = copied_comparison
    for config in copy.rglob("config.yaml"):
        options = yaml.safe_load(config.read_text())
        del options["method"]["distance"]
        config.write_text(yaml.safe_dump(options))
    assert main(words) == 0


@pytest.mark.parametrize(("added", "kind"), [({"objective": "at"}, "run"), ({"objective": "at", "space": {}}, "search")])
def test_a_run_or_a_search_with_the_same_options_is_no_comparison(
    comparison: tuple[Path, list[str]],
    added: dict[str, object],
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, words = comparison
    other = tmp_path / "other"
    other.mkdir()
    options = yaml.safe_load((run / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(options | added))
    assert main([str(other) if word == str(run) else word for word in words]) == 2
    assert f"'{other}' is a {kind}, not a comparison: choose another --run" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["config.yaml"]


def test_a_variant_that_changed_since_its_run_is_refused(
    variant_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(variant_words) == 0
    config = tmp_path / "study.yaml"
    config.write_text(config.read_text().replace("fraction: 0.5", "fraction: 0.6"))
    assert main(variant_words) == 2
    assert "was begun with another method" in capsys.readouterr().err


def test_data_that_changed_since_the_first_runs_is_refused(
    copied_comparison: tuple[Path, list[str]], tiny_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its seeds would be paired over different images."""
    copy, words = copied_comparison
    data = Path(shutil.copy(tiny_npz, tmp_path / "tiny.npz"))
    for config in copy.rglob("config.yaml"):
        config.write_text(config.read_text().replace(str(tiny_npz), str(data)))
    words = [word.replace(str(tiny_npz), str(data)) for word in words]
    assert main(words) == 0  # the same images under another name
    arrays = dict(np.load(data))
    np.savez(data, **(arrays | {"x_test": arrays["x_test"][::-1]}))
    capsys.readouterr()
    assert main([*words[:-3], "0,1,2", *words[-2:]]) == 2
    error = capsys.readouterr().err
    assert f"'{copy / 'at-seed0'}' was trained on other images than 'npz:{data}' has now" in error
    assert not (copy / "at-seed2").exists()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("a b: {objective: at}", "needs a name of its own"),
        ("at: {objective: at}", "needs a name of its own"),
        ("1: {objective: at}", "variant '1' needs a name of its own"),
        ("yes: {objective: at}", "variant 'True' needs a name of its own"),
        ("x: {method: {beta: 2}}", "has no objective"),
        ("x: 3", "variants"),
        ("x: {objective: aalq}", "did you mean"),
        ("x: {objective: at, data: digits}", "unknown option 'data'"),
        ("x: {objective: at, training: {epoch: 2}}", "epoch"),
        ("x: {objective: at, training: {epochs: many}}", "many"),
        ("x: {objective: at, method: {beta: 2}}", "does not apply"),
        ("x: {objective: at, method: {dropout: {mass: 0.4}}}", "method dropout does not apply"),
    ],
)
def test_variants_that_cannot_work_are_refused_before_anything_is_written(
    variant: str, message: str, variant_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(f"objectives: at\nvariants:\n  {variant}\n")
    assert main(variant_words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_row_that_does_not_fit_is_refused_before_any_is_trained(
    copied_comparison: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    copy, words = copied_comparison
    shutil.rmtree(copy / "at-seed0")
    for seed in (0, 1):
        (copy / f"aalp-seed{seed}").rename(copy / f"heavy-seed{seed}")
    words[words.index("at,aalp")] = "at"
    heavy = "{heavy: {objective: aalp, method: {pairing_weight: 3}}}"
    assert main([*words, "--variants", heavy]) == 2
    assert "was begun with another method" in capsys.readouterr().err
    assert not (copy / "at-seed0").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("--evaluation.split validation --data_options.validation 0", "has no validation images"),
        ("--evaluation.exact true --evaluation.attacks autoattack", "exact AutoAttack needs 4 classes"),
        ("--evaluation.exact true --evaluation.attacks pgd-2,apgd-t", "exact AutoAttack needs 4 classes"),
    ],
)
@pytest.mark.parametrize("verb", ["compare --objectives at", "train --evaluate"])
def test_an_evaluation_that_cannot_be_is_refused_before_the_training(
    verb: str, more: str, reason: str, train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), *train_words[1:], *more.split(), "--run", str(tmp_path / "run")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
