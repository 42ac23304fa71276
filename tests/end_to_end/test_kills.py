"""SIGKILL at random moments: what is resumed ends byte by byte as what was never killed (200 kills: `make soak`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes that it kills, which Windows cannot")
def test_training_and_evaluation_killed_at_20_random_moments_end_as_undisturbed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--kills", "20", "--seed", "1"]
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout)
    assert record["kills"] == 20
    assert record["differences"] == []
    for part in (record["training"], record["evaluation"]):
        assert part["by_time"] + part["at_file_operations"] == 10
        assert part["rounds"] >= 1
