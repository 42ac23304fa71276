"""What bad input gets: one line on stderr that names the value and the remedy, exit code 2, nothing written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from aalp.cli import main
from aalp.models.small_cnn import SmallCNN

Arrays = dict[str, np.ndarray]
Given = Callable[[Path], object]
Case = tuple[Given | None, str, tuple[str, ...]]

TRAIN = "train --run run --training.epochs 1 --training.batch_size 16 --attack.steps 1 --training.validation_steps 1 "
ON_TINY = TRAIN + "--data npz:tiny.npz "
SEARCH = ON_TINY.replace("train ", "search ", 1)
COMPARE = ON_TINY.replace("train ", "compare ", 1) + "--seeds 0 --evaluation.attacks fgsm "

FACTORIES = """
import torch
from torch import nn

def net(num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], num_classes))

def probabilities(num_classes, image_shape):
    return nn.Sequential(net(num_classes, image_shape), nn.Softmax(1))

class Blind(nn.Sequential):
    def forward(self, images):
        with torch.no_grad():
            images = images.round()
        return super().forward(images)

def blind(num_classes, image_shape):
    return Blind(net(num_classes, image_shape))

def eleven(num_classes, image_shape):
    return net(11, image_shape)

class Extra(nn.Sequential):
    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        pass

def extra(num_classes, image_shape):
    return Extra(net(num_classes, image_shape))

def raises(num_classes, image_shape):
    raise RuntimeError("no such luck\\nand a second line")

def text(num_classes, image_shape):
    return "a network"

class InTwos(nn.Sequential):
    def forward(self, images):
        return super().forward(images.view(2, 1, 8, 8))

def in_twos(num_classes, image_shape):
    return InTwos(net(num_classes, image_shape))

def headless(num_classes, image_shape):
    return nn.Sequential(nn.Conv2d(1, num_classes, 8), nn.Flatten())

def wrong_size(num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))
"""


class Creates:
    """Unpickled, this makes a folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def arrays_with(**changes: object) -> Given:
    """The tiny arrays as changed.npz, some replaced (by a function of the original, or by a value), None left out."""

    def write(folder: Path) -> None:
        with np.load(folder / "tiny.npz") as archive:
            arrays = dict(archive)
        for name, change in changes.items():
            arrays[name] = change(arrays[name]) if callable(change) else change  # type: ignore[assignment]
        np.savez(folder / "changed.npz", **{name: array for name, array in arrays.items() if array is not None})

    return write


def floats(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) / 255


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = array.copy() if array.ndim == 1 else floats(array)
        changed[3] = value
        return changed

    return change


def yaml_file(text: str) -> Given:
    return lambda folder: (folder / "my.yaml").write_text(text)


def text_file(name: str, text: str) -> Given:
    return lambda folder: (folder / name).write_text(text)


def images(*folders: str) -> Given:
    """Three images in each of these class folders; where a name ends in *, they are of another size."""

    def write(folder: Path) -> None:
        for name in folders:
            path = folder / name.rstrip("*")
            path.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (9, 8) if name.endswith("*") else (8, 8)).save(path / f"{number}.png")

    return write


def both(*given: Given) -> Given:
    return lambda folder: [one(folder) for one in given]


def empty_folder(*names: str) -> Given:
    return lambda folder: [(folder / name).mkdir(parents=True) for name in names]


def small_weights(folder: Path) -> None:
    """Somebody else's weights of a small-cnn with 3 classes on 8x8 images."""
    save_file(SmallCNN(3, (1, 8, 8)).state_dict(), folder / "foreign.safetensors")


def weights_in_twos(folder: Path) -> None:
    """Somebody else's weights of bad_factories:in_twos."""
    save_file({"0.1.weight": torch.zeros(3, 64), "0.1.bias": torch.zeros(3)}, folder / "foreign.safetensors")


def evil_pickle(folder: Path) -> None:
    (folder / "evil.pt").write_bytes(pickle.dumps({"weight": Creates(folder / "executed")}))


def evil_zip(folder: Path) -> None:
    torch.save({"weight": Creates(folder / "executed")}, folder / "evil.pt")


def torn(folder: Path) -> None:
    path = folder / "done" / "weights" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def write_tiny(folder: Path, classes: int = 3, size: int = 8) -> None:
    """changed.npz with images of other classes or of another size."""
    labels = np.arange(24) % classes
    images = np.zeros((24, size, size), np.uint8)
    np.savez(folder / "changed.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)


def begun(folder: Path) -> None:
    """A comparison that was begun with the options of COMPARE."""
    (folder / "run").mkdir()
    options = yaml.safe_load((folder / "done" / "config.yaml").read_text())
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(options))


EVALUATE_FOREIGN = "evaluate foreign.safetensors --data npz:tiny.npz --eps 0.1 --attacks fgsm "


def refused(case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command of this case ends in one line on stderr that names the value and the remedy, and changes nothing."""
    given, words, needles = case
    if given is not None:
        given(folder)
    before = snapshot(folder)
    capfd.readouterr()

    code = main(words.split())

    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("aalp: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    for needle in needles:
        assert needle in err
    assert snapshot(folder) == before


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder: time of change and content of each file by path (Python's own caches aside)."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else (0, b"")
        for path in paths
    }
