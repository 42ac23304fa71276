"""A search of 4 trials, killed while it trains and gone on with, ends as one that was never disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aalp.cli import main

ROOT = Path(__file__).resolve().parents[2]
SPACE = "{training.lr: [0.01, 0.5, log], method.pairing_weight: [0.1, 2.0], method.weights.rule: {choices: [uniform, correct]}}"


def outcomes(run: Path) -> list[tuple[object, ...]]:
    rows = json.loads((run / "search.json").read_text())["trials"]
    return [(row["number"], row["options"], row["state"], row["value"], row["epochs"]) for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_search_killed_within_a_trial_ends_as_undisturbed(
    train_words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["search", *(word for word in train_words[1:] if word != "--quiet=true")]
    words += ["--space", SPACE, "--trials", "4", "--training.epochs", "10", "--run"]
    assert main([*words, str(tmp_path / "undisturbed")]) == 0
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    killed = subprocess.Popen(
        [sys.executable, "-m", "aalp", *words, str(tmp_path / "killed")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # After the third epoch of the second trial, whenever the machine gets there.
    metrics, deadline = tmp_path / "killed" / "trials" / "0001" / "metrics.csv", time.monotonic() + 240
    while not metrics.is_file() or metrics.read_text().count("\n") < 4:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "search.json").exists()
    assert metrics.read_text().count("\n") < 11
    capfd.readouterr()
    assert main([*words, str(tmp_path / "killed")]) == 0
    told = capfd.readouterr().err
    assert "trial 1 goes on" in told
    assert "trial 0" not in told  # was done
    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "undisturbed")
    assert len(outcomes(tmp_path / "killed")) == 4
    weights = [tmp_path / run / "trials" / "0001" / "weights" / "last.safetensors" for run in ("killed", "undisturbed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
