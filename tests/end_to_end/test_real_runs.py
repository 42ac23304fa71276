"""The program as its users start it: a process, real data, real attacks."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from aalp.cli import main
from aalp.store.checkpoint import read_tensors

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real MNIST and CIFAR-10 files are not beside this checkout (../shared/data)"
)


# As in conftest.py: images this small gain nothing from threads, and lose much on busy cores.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def aalp(*words):
    command = [sys.executable, "-m", "aalp", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)


def test_digits_trained_by_aalp_stand_up_to_all_of_autoattack(tmp_path):
    done = aalp(
        *("train", "--config", "digits", "--training.epochs", 14, "--run", tmp_path / "run"),
        *("--evaluate", "true", "--evaluation.images", 16),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/evaluations/test.json").read_text())
    assert [part["name"] for part in record["attacks"][-1]["parts"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    # 40 epochs reach 0.98 / 0.74; a broken defence would be near 0, a broken attack near the clean accuracy.
    assert record["clean"] >= 0.9
    assert 0.4 <= record["robust"] <= record["clean"]
    assert "worst case" in done.stdout
    assert (tmp_path / "run/evaluations/test.parquet").is_file()


def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_weights(tmp_path):
    options = ("--config", "digits", "--objective", "at", "--attack.steps", 3)
    options += ("--data_options.images", 400, "--training.epochs", 3)
    assert main(["train", *map(str, options), "--run", str(tmp_path / "whole"), "--quiet"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "aalp", "train", *map(str, options), "--run", str(tmp_path / "cut")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ONE_THREAD,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut/metrics.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"aalp train --resume {tmp_path / 'cut'}" in errors
    assert main(["train", "--resume", str(tmp_path / "cut"), "--quiet"]) == 0
    for which in ("last", "best"):
        assert_same_tensors(*(tmp_path / name / "weights" / f"{which}.safetensors" for name in ("whole", "cut")))


def assert_same_tensors(one, other):
    (first, _), (second, _) = read_tensors(one), read_tensors(other)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@needs_shared
def test_mnist_from_an_npz_file_trains_and_is_attacked(tmp_path):
    done = aalp(
        *("train", "--config", "mnist", "--data", f"npz:{SHARED / 'mnist.npz'}", "--run", tmp_path / "run"),
        *("--objective", "standard", "--training.epochs", 1, "--training.batch_size", 32, "--training.ema", 0.9),
        *("--data_options.images", 6_000, "--data_options.validation", 100),
        *("--evaluate", "true", "--evaluation.images", 32, "--evaluation.attacks", "fgsm,pgd-20"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/evaluations/test.json").read_text())
    # Ordinary training: right on nearly all images, and on hardly any under attack at eps 0.3.
    assert record["clean"] >= 0.9
    assert record["robust"] <= 0.2


@needs_shared
def test_cifar10_from_an_image_folder_trains_and_is_attacked(tmp_path):
    unpack_some_cifar(tmp_path / "cifar10", per_class=40)
    done = aalp(
        *("train", "--config", "cifar10", "--data", f"folder:{tmp_path / 'cifar10'}", "--model", "thin-resnet"),
        *("--run", tmp_path / "run", "--training.epochs", 2, "--training.batch_size", 64, "--attack.steps", 2),
        *("--evaluate", "true", "--evaluation.images", 50, "--evaluation.attacks", "pgd-10,cw-10"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/evaluations/test.json").read_text())
    assert record["images"] == 50
    assert record["robust"] <= min(attack["accuracy"] for attack in record["attacks"]) <= record["clean"]


def unpack_some_cifar(target, per_class):
    """The first images of each class and split, without unpacking all 60,000."""
    taken = {}
    with tarfile.open(SHARED / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            folder = Path(member.name).parent
            if member.isfile() and taken.setdefault(folder, 0) < per_class:
                taken[folder] += 1
                destination = target.parent / folder
                destination.mkdir(parents=True, exist_ok=True)
                (destination / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    assert len(taken) == 20
