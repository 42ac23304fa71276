"""`--devices N`: processes that are started, watched and ended together. The children here are no aalp, and start at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aalp.cli import main
from aalp.commands.launching import launch
from aalp.errors import OptionError

SOURCE = Path(__file__).resolve().parents[2] / "src"


def child(code: str) -> list[str]:
    """A command whose process runs this code, with its rank at hand."""
    return [sys.executable, "-c", f"import os, sys, time, signal\nrank = int(os.environ['RANK'])\n{code}"]


def test_all_are_told_who_they_are_and_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR OMP_NUM_THREADS"
    told = f"open(r'{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[name] for name in '{names}'.split()))"
    assert launch(child(told), 2) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (tmp_path / "0").read_text() == f"0 0 2 2 0 127.0.0.1 {threads}"
    assert (tmp_path / "1").read_text() == f"1 1 2 2 0 127.0.0.1 {threads}"


def test_on_the_second_of_two_machines_ranks_go_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    told = f"open(r'{tmp_path}/' + str(rank), 'w').write(os.environ['LOCAL_RANK'] + os.environ['WORLD_SIZE'])"
    assert launch(child(told), 2, nodes=2) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"2": "04", "3": "14"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(3) if rank == 1 else time.sleep(60)", 3),
        # The first to end only says that it lost the other one.
        ("time.sleep(0.4 * rank); sys.exit(5 - 3 * rank)", 2),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)", 137),
        # Told to stop, the main one still saves when the other has ended.
        ("time.sleep(3 * (1 - rank)); sys.exit(143)", 143),
    ],
)
def test_one_that_fails_ends_all_at_once_with_its_own_code(code: str, expected: int, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert launch(child(code), 2) == expected
    assert time.monotonic() - started < 20
    err = capfd.readouterr().err
    assert ("process 1 was ended by SIGKILL (out of memory?), and the others with it" in err) is (expected == 137)


LAUNCHER = """
import sys
from aalp.commands.launching import launch
sys.exit(launch([sys.executable, "-c", sys.argv[1]], 2))
"""


def start(code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", LAUNCHER, code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return sorted(process.stdout.readline().strip() for _ in range(count))


def test_signals_reach_every_process_once() -> None:
    # One write a line: two that print at the same moment may share a line.
    code = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'got\\n'), sys.exit(143)))\n"
    process = start(code + "os.write(1, b'ready\\n')\ntime.sleep(60)")
    assert lines(process, 2) == ["ready", "ready"]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert out.split() == ["got", "got"]
    assert process.returncode == 143


def test_processes_end_with_a_launcher_that_is_killed() -> None:
    code = "from aalp.commands.launching import _follow_launcher\nimport os, time\n_follow_launcher()\n"
    process = start(code + "os.write(1, f'{os.getpid()}\\n'.encode())\ntime.sleep(60)")
    children = [int(line) for line in lines(process, 2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    process.stdout.close()  # type: ignore[union-attr]


def test_several_machines_need_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OptionError, match="nodes is 2 and MASTER_ADDR is not set"):
        launch(child(""), 1, nodes=2)
    for name, value in {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="NODE_RANK is '2' and nodes is 2: number the machines from 0"):
        launch(child(""), 1, nodes=2)


@pytest.mark.parametrize(
    ("variables", "words", "line"),
    [
        ({}, ["--devices", "0"], "devices is 0: it has to be at least 1"),
        ({}, ["--nodes", "-1"], "nodes is -1: it has to be at least 1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, [], "LOCAL_RANK=, LOCAL_WORLD_SIZE=: every machine has to run the same number"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
            ["--devices", "4"],
            "devices is 4 and nodes is 1, and 2 processes were started on 1 machines",
        ),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, [], "SLURM_PROCID=0, SLURM_STEP_NUM_TASKS=2, SLURM_LOCALID="),
    ],
)
def test_what_does_not_fit_is_one_line(
    variables: dict[str, str],
    words: list[str],
    line: str,
    train_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*train_words, "--run", str(tmp_path / "run"), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert line in err
    assert not (tmp_path / "run").exists()


def test_a_verb_that_runs_alone_says_so(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["report", str(tiny_run)]) == 2
    assert "`aalp report` runs in one process: start it without torchrun or srun" in capsys.readouterr().err


def test_one_process_says_that_it_cannot_share_its_weights(
    train_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*train_words, "--strategy", "fsdp", "--training.epochs", "1"]
    assert main([*words, "--run", str(tmp_path / "run")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "fsdp" in line]
    assert told == ["aalp: strategy is fsdp and there is one process: it keeps all weights, as with ddp; give --devices"]
