"""Fixtures that several rooms share: small data of every kind, and runs that are trained once a session."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aalp.cli import main
from aalp.data.split import ResidentSplit
from aalp.method.objectives import AT
from aalp.method.pgd import AttackOptions
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier
from aalp.models.small_cnn import SmallCNN
from aalp.store.run import RunDirectory
from aalp.training.options import TrainingOptions
from aalp.training.plan import Fit

# Networks and images this small gain nothing from threads, which on busy cores cost twenty times the work itself.
torch.set_num_threads(1)

TINY_TRAINING = (
    "--training.epochs",
    "2",
    "--training.batch_size",
    "16",
    "--training.lr",
    "0.05",
    "--training.ema",
    "0.9",
    "--training.validation_steps",
    "2",
    "--attack.steps",
    "2",
    "--threat.eps",
    "0.1",
)

Arrays = dict[str, np.ndarray]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, as `--no-loadscope-reorder` keeps them: one that is begun last leaves other cores idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Keep the collector from looking, again and again, through a million objects of imported packages: they stay."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Else what is still frozen at the end of the process reads as leaked to packages that count."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_arrays() -> Callable[..., Arrays]:
    """Makes x_train, y_train, x_test, y_test: noisy 8x8 images in which each class lights another pair of rows."""

    def make(classes: int = 3, train: int = 72, test: int = 18, size: int = 8, seed: int = 0) -> Arrays:
        random = np.random.default_rng(seed)
        arrays: Arrays = {}
        for split, count in (("train", train), ("test", test)):
            labels = np.arange(count) % classes
            images = random.integers(0, 60, (count, size, size))
            for image, label in zip(images, labels, strict=True):
                image[2 * label : 2 * label + 2] += 180
            arrays[f"x_{split}"], arrays[f"y_{split}"] = images.astype(np.uint8), labels
        return arrays

    return make


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory, tiny_arrays: Callable[..., Arrays]) -> Path:
    """An .npz of 72 training and 18 test images of three classes; not to be written to."""
    path = tmp_path_factory.mktemp("npz") / "tiny.npz"
    np.savez(path, **tiny_arrays())
    return path


@pytest.fixture(scope="session")
def write_images() -> Callable[..., Path]:
    """Writes `count` images of a class as numbered files and returns their folder."""

    def write(
        folder: Path,
        count: int = 4,
        size: tuple[int, int] = (8, 8),
        mode: str = "RGB",
        suffix: str = ".png",
        tone: int = 0,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(tone)
        shape = (count, size[1], size[0]) if mode == "L" else (count, size[1], size[0], 3)
        for number, pixels in enumerate(random.integers(tone, tone + 56, shape).astype(np.uint8)):
            Image.fromarray(pixels).save(folder / f"{number:03d}{suffix}")
        return folder

    return write


@pytest.fixture
def image_folder(tmp_path: Path, write_images: Callable[..., Path]) -> Path:
    """train/ and test/ with the classes cat and dog, 20 and 4 images of 8x8 each."""
    root = tmp_path / "animals"
    for tone, name in ((0, "cat"), (180, "dog")):
        write_images(root / "train" / name, 20, tone=tone)
        write_images(root / "test" / name, 4, tone=tone)
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (see its README.md)."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "mnist.npz").is_file():
        pytest.skip(f"needs the real data sets in {folder}, which are not part of this repository")
    return folder


@pytest.fixture(scope="session")
def train_words(tiny_npz: Path) -> list[str]:
    """The command line of a training run of 2 epochs on the tiny data, to which a test adds what it is about."""
    return ["train", "--data", f"npz:{tiny_npz}", "--quiet=true", *TINY_TRAINING]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, train_words: list[str]) -> Path:
    """A finished run directory; not to be written to (see `copied_run`)."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert main([*train_words, "--run", str(run)]) == 0
    return run


@pytest.fixture
def copied_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copied"))


@pytest.fixture
def fit_plan(tmp_path: Path, fit_plan_in: Callable[..., Fit]) -> Callable[..., Fit]:
    """Makes a training of 2 epochs of 4 steps on the tiny images, in a directory of its own; a test says what differs."""
    return partial(fit_plan_in, tmp_path)


@pytest.fixture(scope="session")
def fit_plan_in(tiny_arrays: Callable[..., Arrays], small_classifier: Callable[..., Classifier]) -> Callable[..., Fit]:
    """The same in a given folder."""

    def make(folder: Path, name: str = "run", options: dict[str, Any] | None = None, **changes: Any) -> Fit:
        arrays = tiny_arrays()
        splits = [
            ResidentSplit(torch.from_numpy(arrays[f"x_{split}"])[:, None], torch.from_numpy(arrays[f"y_{split}"]))
            for split in ("train", "test")
        ]
        chosen = {"epochs": 2, "batch_size": 16, "lr": 0.05, "ema": 0.9, "validation_steps": 2, **(options or {})}
        plan: dict[str, Any] = {
            "classifier": small_classifier(3).train(),
            "objective": AT(),
            "threat": Linf(0.1),
            "train": splits[0],
            "validation": splits[1],
            "run": RunDirectory(folder / name),
            "metadata": {"model": "small-cnn"},
            "attack": AttackOptions(steps=2),
            "options": TrainingOptions(**chosen),
        }
        return Fit(**{**plan, **changes})

    return make


@pytest.fixture(scope="session")
def small_classifier() -> Callable[..., Classifier]:
    """Makes an untrained SmallCNN on 8x8 grey images, the same one every time for the same arguments."""

    def make(classes: int = 4, size: int = 8, seed: int = 0, **normalisation: Any) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Classifier(SmallCNN(classes, (1, size, size), hidden=16), **normalisation).eval()

    return make
