"""Several processes on one comparison: each run is made once, and one that dies is gone on with by another."""

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
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL, and no locks on folders"),
]


def compare(words: list[str], run: Path, *more: str) -> list[str]:
    options = [word for word in words[1:] if word != "--quiet=true"]
    return ["compare", *options, "--objectives", "at,aalp", "--evaluation.attacks", "fgsm", *more, "--run", str(run)]


def started(words: list[str], **more: bool) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "aalp", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def figures(run: Path) -> object:
    """Of a comparison what does not depend on the time it took."""
    cells = json.loads((run / "comparison.json").read_text())["cells"]
    return [
        (cell["objective"], cell["seed"], {k: v for k, v in cell["figures"].items() if k != "train_seconds"}) for cell in cells
    ]


def test_two_jobs_make_each_run_once_and_the_table_of_one(train_words: list[str], tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(compare(train_words, alone, "--seeds", "0,1", "--quiet")) == 0
    out, err = started(compare(train_words, shared, "--seeds", "0,1", "--jobs", "2")).communicate(timeout=240)
    assert "records:" in out, err
    assert figures(shared) == figures(alone)
    for cell in ("at-seed0", "aalp-seed0", "at-seed1", "aalp-seed1"):
        weights = Path(cell) / "weights" / "last.safetensors"
        assert (shared / weights).read_bytes() == (alone / weights).read_bytes()
        assert len((shared / cell / "metrics.csv").read_text().splitlines()) == 3  # a title and two epochs
        assert [path.name for path in (shared / cell / "evaluations").glob("*.json")] == ["test.json"]


def test_a_run_whose_process_is_killed_is_gone_on_with_by_the_other_one(train_words: list[str], tmp_path: Path) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    longer = ("--seeds", "0", "--training.epochs", "12")
    assert main(compare(train_words, undisturbed, *longer, "--quiet")) == 0
    killed = started(compare(train_words, run, *longer))
    metrics, deadline = run / "at-seed0" / "metrics.csv", time.monotonic() + 240
    while not metrics.is_file() or metrics.read_text().count("\n") < 3:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGSTOP)  # so that it holds on to its run while the other one makes what is left
    other = started(compare(train_words, run, *longer))
    assert other.stderr is not None
    said = ""
    while "waiting for other processes, which are at at-seed0" not in said:
        line = other.stderr.readline()
        assert line, said
        said += line
    killed.send_signal(signal.SIGKILL)
    out, said_later = other.communicate(timeout=240)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert "at on npz" in said_later  # only after the wait
    assert "at on npz" not in said.replace("aalp on npz", "")
    assert "records:" in out
    assert figures(run) == figures(undisturbed)
    weights = Path("at-seed0") / "weights" / "last.safetensors"
    assert (run / weights).read_bytes() == (undisturbed / weights).read_bytes()


def test_a_job_that_is_killed_leaves_its_work_to_the_rest(train_words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(compare(train_words, run, "--seeds", "0,1", "--jobs", "2", "--training.epochs", "20"))
    os.kill(its_other_job(process, run), signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "another process was ended by SIGKILL" in err
    assert "records:" in out
    assert len(list(run.glob("*/evaluations/test.json"))) == 4


@pytest.mark.parametrize("begun", [1, 2], ids=["one is starting", "both have begun"])
def test_ctrl_c_ends_all_jobs_in_one_line(begun: int, train_words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = compare(train_words, run, "--seeds", "0", "--jobs", "2", "--training.epochs", "500", "--quiet")
    process = started(words, start_new_session=True)
    other = its_other_job(process, run, begun)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("aalp: stopped, and saved: continue with `aalp compare")
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def its_other_job(process: subprocess.Popen[str], run: Path, begun: int = 2) -> int:
    """The second process of a comparison with two jobs, once so many runs are begun."""
    deadline = time.monotonic() + 240
    while len(list(run.glob("*/states"))) < begun:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    children = [Path(f"/proc/{process.pid}/task/{task.name}/children") for task in Path(f"/proc/{process.pid}/task").iterdir()]
    found = [int(number) for path in children for number in path.read_text().split()]
    return next(number for number in found if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes())
