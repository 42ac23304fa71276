"""A comparison that was stopped, or of which a run diverged, and what joins one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from aalp.cli import main
from aalp.commands.console import Display

FIGURES = ("clean", "fgsm", "pgd-2", "robust")


def test_a_comparison_continues_where_it_stopped_and_does_nothing_twice(
    copied_comparison: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    copy, words = copied_comparison
    before = json.loads((copy / "comparison.json").read_text())
    # One cell lacks its evaluation, one was never begun; the comparison was stopped before its end.
    for suffix in ("json", "parquet"):
        (copy / "at-seed1" / "evaluations" / f"test.{suffix}").unlink()
    shutil.rmtree(copy / "aalp-seed1")
    (copy / "comparison.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    trained = {path for path in times if "at-seed1" in path.parts and path.suffix == ".safetensors"}

    assert main(words) == 0

    capsys.readouterr()
    after = json.loads((copy / "comparison.json").read_text())
    finished = {path for path in times if path.parent.name.endswith("seed0") or "seed0" in str(path.relative_to(copy))}
    assert len(finished) >= 12
    assert {path: path.stat().st_mtime_ns for path in finished | trained} == {path: times[path] for path in finished | trained}
    for name in ("at", "aalp"):
        for figure in FIGURES:
            assert after["table"][name][figure] == before["table"][name][figure]


def test_an_interrupted_cell_is_resumed(
    comparison: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, words = comparison
    copy = tmp_path / "run"
    words = [str(copy) if word == str(run) else word for word in words]
    words[words.index("at,aalp")] = "at"

    def press(self: Display, step: int, total: int, loss: float) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Display, "training_step", press)
        assert main(words) == 130
    err = capsys.readouterr().err
    assert "aalp compare" in err  # how to continue the comparison, not one of its cells
    assert main(words) == 0
    for seed in (0, 1):
        weights = Path(f"at-seed{seed}") / "weights" / "last.safetensors"
        assert (copy / weights).read_bytes() == (run / weights).read_bytes()


def test_more_seeds_and_objectives_join_what_is_done(
    copied_comparison: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    copy, words = copied_comparison
    words[words.index("at,aalp")] = "at,standard"
    words[words.index("0,1")] = "1"
    time = (copy / "at-seed1" / "evaluations" / "test.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (copy / "at-seed1" / "evaluations" / "test.json").stat().st_mtime_ns == time
    out = capsys.readouterr().out
    assert "standard" in out
    assert "aalp" not in out.partition("records:")[0]


def test_a_cell_can_go_on_alone_whatever_numbers_the_other_rows_have(train_words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["compare", *train_words[1:], "--run", str(run), "--objectives", "trades,at", "--seeds", "0", "--method.beta", "3"]
    words += ["--evaluation.attacks", "fgsm", "--training.epochs", "1"]
    assert main(words) == 0
    assert main(["train", "--resume", str(run / "at-seed0"), "--quiet"]) == 0  # at has no beta, and train refuses one
    config = run / "at-seed0" / "config.yaml"
    assert "beta: null" in config.read_text()
    config.write_text(config.read_text().replace("beta: null", "beta: 3.0"))  # as it was written at first
    assert main(words) == 0


def test_a_run_that_diverges_leaves_the_others_to_be_done(
    train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["compare", *train_words[1:], "--run", str(run), "--seeds", "0", "--evaluation.attacks", "fgsm"]
    hot = "{hot: {objective: standard, training: {lr: 1.0e+30, schedule: step, epochs: 3}}}"
    assert main([*words, "--objectives", "standard", "--variants", hot.replace("hot", "a-hot")]) == 1
    said = capsys.readouterr()
    assert "a-hot-seed0 diverged: the loss is" in said.err
    assert said.err.splitlines()[-1].startswith("aalp: all is done but a-hot-seed0, which diverged: ")
    record = json.loads((run / "comparison.json").read_text())
    assert (list(record["table"]), record["left"]) == (["standard"], ["a-hot-seed0"])
    assert "1 of 2 runs are missing (a-hot-seed0)" in said.out
    assert main([*words, "--objectives", "standard"]) == 0  # the table without it
    assert json.loads((run / "comparison.json").read_text())["left"] == []


def test_runs_beside_one_that_diverges_are_audited(
    train_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audits: list[str] = []
    monkeypatch.setattr("aalp.commands.cells.audit_once", lambda directory, *others: audits.append(directory.path.name))
    words = ["compare", *train_words[1:], "--run", str(tmp_path / "run"), "--seeds", "0", "--evaluation.attacks", "fgsm"]
    hot = "{hot: {objective: standard, training: {lr: 1.0e+30}}}"
    assert main([*words, "--objectives", "standard", "--variants", hot, "--audit"]) == 1
    assert audits == ["standard-seed0"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("aalp: all is done but hot-seed0, which diverged: ")


def test_a_signal_in_the_last_epoch_of_a_run_stops_the_comparison(
    train_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = Display.epoch
    ended: list[dict[str, float]] = []
    meanwhile: list[str] = []

    def press(self: Display, row: dict[str, float], epochs: int) -> None:
        show(self, row, epochs)
        if row["epoch"] == epochs:
            ended.append(row)
            if len(ended) == 2:  # the second run's end: the first is evaluated, and can be read about meanwhile
                meanwhile.append((tmp_path / "run" / "comparison.md").read_text())
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Display, "epoch", press)
    words = ["compare", *train_words[1:], "--run", str(tmp_path / "run"), "--objectives", "at", "--seeds", "0,1,2"]
    assert main([*words, "--evaluation.attacks", "fgsm"]) == 143
    said = capsys.readouterr()
    assert "continue with `aalp compare" in said.err
    assert not (tmp_path / "run" / "at-seed1" / "evaluations").exists()
    assert not (tmp_path / "run" / "at-seed2").exists()
    for told in (*meanwhile, said.out, (tmp_path / "run" / "comparison.md").read_text()):
        assert "seed 0 alone" in told
        assert "2 of 3 runs are missing (at-seed1, at-seed2)" in told
