"""A search draws, prunes, fails, resumes and shares its trials; what it says is what its trials did."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from aalp.cli import main
from aalp.commands import search as searching
from aalp.commands.search import table
from aalp.commands.study import Study
from aalp.errors import DivergedError, InterruptedRunError, OptionError
from aalp.store.records import read_record
from aalp.training.state import Progress

SPACE = "{training.lr: [0.01, 0.3, log], training.epochs: [1, 2], method.weights.rule: {choices: [uniform, confidence]}}"


@pytest.fixture(scope="module")
def words(train_words: list[str]) -> list[str]:
    return ["search", *train_words[1:], "--space", SPACE]


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of 3 trials; not to be written to."""
    run = tmp_path_factory.mktemp("search") / "done"
    assert main([*words, "--run", str(run), "--trials", "3"]) == 0
    return run


def outcomes(run: Path) -> list[tuple[Any, ...]]:
    """What matters of each trial: its options, state and value."""
    rows = read_record(run / "search.json", "search")["trials"]
    return [(row["number"], row["options"], row["state"], row["value"], row["epochs"]) for row in rows]


def test_each_trial_is_a_run_with_its_options_and_its_value_is_of_validation_images(finished: Path) -> None:
    record = read_record(finished / "search.json", "search")
    assert record["objective"] == "validation robust accuracy (PGD-2) of the best epoch"
    assert record["validation_images"] == 7
    assert [row["number"] for row in record["trials"]] == [0, 1, 2]
    for row in record["trials"]:
        run = finished / "trials" / f"{row['number']:04d}"
        config = yaml.safe_load((run / "config.yaml").read_text())
        chosen = row["options"]
        assert 0.01 <= chosen["training.lr"] <= 0.3
        assert config["training"]["lr"] == chosen["training.lr"]
        assert config["training"]["epochs"] == chosen["training.epochs"] == row["epochs"]
        assert config["method"]["weights"]["rule"] == chosen["method.weights.rule"]
        rows = (run / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("validation_robust")
        assert row["value"] == max(float(line.split(",")[column]) for line in rows[1:])
        assert not (run / "evaluations").exists()
    best = record["best"]
    assert best["value"] == max(row["value"] for row in record["trials"])
    assert Path(record["config"]) == finished / f"best-{best['number']:04d}.yaml"


def test_the_winner_s_configuration_trains_what_the_trial_was(finished: Path, tmp_path: Path) -> None:
    record = read_record(finished / "search.json", "search")
    assert main(["train", "--config", record["config"], "--run", str(tmp_path / "again"), "--quiet"]) == 0
    trial = finished / "trials" / f"{record['best']['number']:04d}"
    files = [run / "weights" / "best.safetensors" for run in (trial, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_options_that_are_drawn_again_are_not_trained_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []

    def train_run(directory: Any, *_: Any, on_epoch: Any, **__: Any) -> Progress:
        trained.append(directory.path)
        on_epoch({"validation_robust": 0.1 * len(trained), "epoch": 2})
        return Progress(best_robust=0.1 * len(trained))

    monkeypatch.setattr(searching, "build_classifier", lambda *_: None)
    monkeypatch.setattr(searching, "train_run", train_run)
    run = tmp_path / "again"
    space = "{objective: {choices: [at, trades]}}"
    assert main([*words[:-1], space, "--run", str(run), "--trials", "6"]) == 0
    assert sorted(trained) == sorted((run / "trials").iterdir())
    assert len(trained) == 2
    assert len(outcomes(run)) == 6
    assert len({(row[1]["objective"], *row[2:]) for row in outcomes(run)}) == 2
    assert {row[2:] for row in outcomes(run)} == {("complete", 0.1, 2), ("complete", 0.2, 2)}


def test_the_winner_trains_where_the_space_has_numbers_that_its_objective_does_not(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "build_classifier", lambda *_: None)
    monkeypatch.setattr(searching, "train_run", lambda *_, **__: Progress(best_robust=0.5))
    space = "{objective: {choices: [at, trades]}, method.beta: [1.0, 8.0]}"
    run = tmp_path / "mixed"
    assert main([*words[:-1], space, "--run", str(run), "--trials", "4"]) == 0
    assert {row[1]["objective"] for row in outcomes(run)} == {"at", "trades"}
    files = [*(run / "trials").glob("*/config.yaml"), *run.glob("best-*.yaml")]
    assert len(files) == 5
    for config in map(yaml.safe_load, (file.read_text() for file in files)):
        assert (config["method"]["beta"] is None) == (config["objective"] == "at")  # which would refuse one


def test_a_finished_search_says_the_same_again_goes_on_with_more_trials_and_refuses_another_space(
    finished: Path, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "more"))
    assert main([*words, "--run", str(run), "--trials", "3"]) == 0
    assert outcomes(run) == outcomes(finished)
    assert main([*words, "--run", str(run), "--trials", "4"]) == 0
    assert outcomes(run)[:3] == outcomes(finished)
    assert len(outcomes(run)) == 4
    out = capfd.readouterr().out
    assert f"aalp train --config {run}/best-" in out
    other = [word if word != SPACE else "{training.lr: [0.01, 0.3, log]}" for word in words]
    assert main([*other, "--run", str(run)]) == 2
    assert "was begun with another space" in capfd.readouterr().err


def test_trials_on_other_images_do_not_join_a_search(
    finished: Path, words: list[str], tiny_arrays: Any, tiny_npz: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, data = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "other.npz"
    np.savez(data, **tiny_arrays(seed=1))
    for config in run.rglob("config.yaml"):
        config.write_text(config.read_text().replace(str(tiny_npz), str(data)))
    other = [word.replace(str(tiny_npz), str(data)) for word in words]
    assert main([*other, "--run", str(run), "--trials", "4"]) == 2
    assert "0000' was trained on other images than 'npz:" in capfd.readouterr().err
    assert outcomes(run) == outcomes(finished)


def test_a_stopped_trial_is_gone_on_with_and_the_search_ends_as_undisturbed(
    finished: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    honest, calls = searching.train_run, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:

            def stop(row: Any) -> None:
                raise InterruptedRunError(15, "nothing")

            return honest(*arguments, **{**options, "on_epoch": stop})
        return honest(*arguments, **options)

    monkeypatch.setattr(searching, "train_run", stopped)
    run = tmp_path / "stopped"
    command = [*words, "--run", str(run), "--trials", "3"]
    assert main(command) == 143
    assert "continue with `aalp search" in capfd.readouterr().err
    assert not (run / "search.json").exists()
    assert main(command) == 0
    assert outcomes(run) == outcomes(finished)


def test_a_trial_killed_before_it_had_its_options_is_begun_anew(
    finished: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, options: Any) -> None:
        path.mkdir(parents=True)
        raise InterruptedRunError(9, "nothing")

    run = Path(shutil.copytree(finished, tmp_path / "killed"))
    (run / "trials" / ".DS_Store").write_bytes(b"of a file manager")
    with monkeypatch.context() as patch:
        patch.setattr(searching, "begin", killed)
        assert main([*words, "--run", str(run), "--trials", "4"]) == 137
    assert not any((run / "trials" / "0003").iterdir())
    assert main([*words, "--run", str(run), "--trials", "4"]) == 0
    assert outcomes(run)[:3] == outcomes(finished)
    assert outcomes(run)[3][2] == "complete"


def test_a_trial_that_fails_is_told_and_the_others_go_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def diverges(*arguments: Any, **options: Any) -> Any:
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(searching, "train_run", diverges)
    assert main([*words, "--run", str(tmp_path / "bad"), "--trials", "2"]) == 0
    out, err = capfd.readouterr()
    assert "trial 1 failed: the loss is nan" in out
    assert "no trial came to its end" in out
    assert "trial 0 failed: the loss is nan" in err
    assert [(row[2], row[3]) for row in outcomes(tmp_path / "bad")] == [("fail", None)] * 2


@pytest.mark.parametrize(("space", "pruned"), [(SPACE, False), ("{training.lr: [0.01, 0.3, log]}", True)])
def test_trials_of_different_lengths_are_not_pruned(
    space: str, pruned: bool, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def study_of(_folder: Path, _space: Any, _seed: int, prune: bool, warmup: int) -> Study:
        made.append(prune)
        raise OptionError("enough")

    monkeypatch.setattr(searching, "Study", study_of)
    assert main([*words[:-1], space, "--run", str(tmp_path / "s")]) == 2
    assert made == [pruned]


def test_the_table_goes_from_best_to_worst_then_what_did_not_end() -> None:
    rows = [
        {"number": 0, "state": "complete", "value": 0.25, "epochs": 3, "options": {"training.lr": 0.1}},
        {"number": 1, "state": "pruned", "value": None, "epochs": 1, "options": {"training.lr": 0.0123412}},
        {"number": 2, "state": "complete", "value": 0.5, "epochs": 3, "options": {"training.lr": 0.2}},
        {"number": 3, "state": "fail", "value": None, "epochs": 0, "options": {}, "reason": "the loss is nan"},
    ]
    assert table(rows).splitlines() == [
        "trial  robust     state  epochs  training.lr",
        "-----  ------  --------  ------  -----------",
        "2       50.0%  complete       3          0.2",
        "0       25.0%  complete       3          0.1",
        "1           -    pruned       1      0.01234",
        "3           -      fail       0            -",
        "trial 3 failed: the loss is nan",
    ]
