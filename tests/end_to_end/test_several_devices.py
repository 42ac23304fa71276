"""Several processes as their users start them: `--devices 2`, torchrun on two "machines", one that dies, one that resumes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from aalp.cli import main
from aalp.store.checkpoint import read_tensors

SOURCE = Path(__file__).resolve().parents[2] / "src"

DYING = '''
import os, signal
from aalp.models.small_cnn import SmallCNN

class Dying(SmallCNN):
    """Kills the second process in its sixth training pass, where it is told to."""
    passes = 0

    def forward(self, images):
        self.passes += self.training
        if self.passes == 6 and os.environ.get("DYING", "nobody") == os.environ.get("RANK"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)

def make(num_classes, image_shape):
    return Dying(num_classes, image_shape, hidden=16)
'''


def environment(folder: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(SOURCE), str(folder), os.environ.get("PYTHONPATH", "")])
    return {**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def assert_same_weights(one: Path, other: Path) -> None:
    for which in ("last", "best"):
        (tensors, _), (others, _) = (read_tensors(run / "weights" / f"{which}.safetensors") for run in (one, other))
        assert all(torch.allclose(values, others[name], rtol=1e-4, atol=1e-6) for name, values in tensors.items())


def verdicts(run: Path) -> list[object]:
    record = json.loads((run / "evaluations" / "test.json").read_text())
    return [record["clean"], record["robust"], record["broken_by"], [a["accuracy"] for a in record["attacks"]]]


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_torchrun_on_two_machines_ends_it(
    tmp_path: Path, train_words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    # In L2, whose steps follow the gradient: those of Linf follow its sign, and a pixel at which rounding (in which
    # batches of other sizes differ) turns that sign moves by eps, and weights by 1e-4.
    words = [*train_words, "--model", "dying:make", "--training.precision", "32-true", "--evaluate"]
    words += ["--threat.norm", "l2", "--threat.eps", "1.0"]
    words += ["--evaluation.attacks", "pgd-3,apgd-ce", "--evaluation.batch_size", "5"]
    assert main([*words, "--run", str(tmp_path / "one")]) == 0
    capfd.readouterr()

    # One of two processes is killed in the second epoch: the other one does not wait for it.
    for name, value in environment(tmp_path, DYING="1").items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    assert main([*words, "--resume", str(tmp_path / "two"), "--devices", "2"]) == 128 + signal.SIGKILL
    out, err = capfd.readouterr()
    assert time.monotonic() - started < 120
    assert out == ""
    assert "process 1 was ended by SIGKILL (out of memory?)" in err
    assert "Traceback" not in err
    assert (tmp_path / "two" / "states" / "step-00000004.safetensors").is_file()

    # Two machines go on with it, one process each, that share the weights out as well, and evaluate.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"),
                *("--master-addr=127.0.0.1", f"--master-port={port}", "-m", "aalp", *words, "--strategy", "fsdp"),
                *("--resume", str(tmp_path / "two")),
            ],
            env=environment(tmp_path, GLOO_SOCKET_IFNAME="lo"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    told = [process.communicate(timeout=200) for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], told
    assert "worst case" in told[0][0]
    assert told[1][0] == ""  # the second machine says nothing
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    assert verdicts(tmp_path / "one") == verdicts(tmp_path / "two")
    with (tmp_path / "two" / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["4", "8"]
    assert not [path for path in (tmp_path / "two").rglob("*") if "partial" in path.name]


@pytest.mark.slow
def test_an_error_that_all_processes_have_is_told_once(
    tmp_path: Path, train_words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert main([*train_words, "--data", "npz:nothing.npz", "--run", str(tmp_path / "new"), "--devices", "2"]) == 2
    err = capfd.readouterr().err
    assert err.count("nothing.npz") == len(err.splitlines()) == 1
