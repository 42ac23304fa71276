"""What bad input gets: one line on stderr that names the value and the remedy, exit code 2, nothing written."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
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
COMPARE = ON_TINY.replace("train ", "compare ", 1) + "--seeds 0 --evaluation.attacks fgsm "

FACTORIES = """
import torch
from torch import nn

def net(num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], num_classes))

def probabilities(num_classes, image_shape):
    return nn.Sequential(net(num_classes, image_shape), nn.Softmax(1))

def eleven(num_classes, image_shape):
    return net(11, image_shape)

def raises(num_classes, image_shape):
    raise RuntimeError("no such luck\\nand a second line")

def text(num_classes, image_shape):
    return "a network"

def headless(num_classes, image_shape):
    return nn.Sequential(nn.Conv2d(1, num_classes, 8), nn.Flatten())

def wrong_size(num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))
"""


class Creates:
    """Unpickled, this makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

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


def evil_pickle(folder: Path) -> None:
    (folder / "evil.pt").write_bytes(pickle.dumps({"weight": Creates(str(folder / "executed"))}))


def evil_zip(folder: Path) -> None:
    torch.save({"weight": Creates(str(folder / "executed"))}, folder / "evil.pt")


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


@pytest.fixture
def folder(tmp_path: Path, tiny_npz: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with tiny.npz, a finished run `done`, and a module of model factories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copy(tiny_npz, tmp_path / "tiny.npz")
    shutil.copytree(tiny_run, tmp_path / "done")
    (tmp_path / "bad_factories.py").write_text(FACTORIES)
    yield tmp_path
    sys.modules.pop("bad_factories", None)


EVALUATE_FOREIGN = "evaluate foreign.safetensors --data npz:tiny.npz --eps 0.1 --attacks fgsm "

BAD_NAMES: dict[str, Case] = {
    "unknown verb": (None, "trian", ("verb 'trian'", "did you mean 'train'?", "compare, evaluate, train")),
    "unknown verb like none": (None, "xyzzy", ("verb 'xyzzy'", "known are analyze, audit, compare, evaluate, train")),
    "a flag without verb": (None, "--quiet", ("'--quiet'", "known are analyze, audit, compare, evaluate, train")),
    "unknown objective": (None, ON_TINY + "--objective aapl", ("objective 'aapl'", "did you mean 'aalp'?")),
    "unknown objective to compare": (None, COMPARE + "--objectives at,tardes", ("'tardes'", "did you mean 'trades'?")),
    "unknown model": (None, ON_TINY + "--model smal-cnn", ("model 'smal-cnn'", "did you mean 'small-cnn'?")),
    "unknown model to compare": (
        None,
        COMPARE + "--objectives at --model smal-cnn",
        ("model 'smal-cnn'", "did you mean 'small-cnn'?"),
    ),
    "unknown timm model": (None, ON_TINY + "--model timm:resnet81", ("timm model 'resnet81'", "did you mean 'resnet")),
    "unknown data": (None, TRAIN + "--data digit", ("data source 'digit'", "did you mean 'digits'?")),
    "unknown kind of data": (None, TRAIN + "--data nzp:tiny.npz", ("'nzp:tiny.npz'", "npz:FILE")),
    "data without its argument": (None, TRAIN + "--data npz:", ("'npz:'", "npz:FILE")),
    "unknown torchvision data": (
        None,
        TRAIN + "--data torchvision:CIFAR01",
        ("torchvision data set 'CIFAR01'", "did you mean 'CIFAR10"),
    ),
    "unknown attack": (
        None,
        ON_TINY + "--evaluation.attacks fgsm,pdg-20",
        ("attack 'pdg-20'", "did you mean 'pgd-20'?"),
    ),
    "unknown attack to evaluate": (None, "evaluate done --attacks apgd", ("attack 'apgd'", "did you mean 'apgd-")),
    "attack without steps": (None, "evaluate done --attacks pgd-0", ("attack 'pgd-0'", "did you mean 'pgd-20'?")),
    "unknown preset": (None, "train --run run --config digit", ("'digit'", "did you mean 'digits'?")),
    "a missing configuration file": (None, "train --run run --config mine/conf.yaml", ("'mine/conf.yaml'", "digits")),
    "configuration without name": (None, "train --run run --config", ("--config", "value")),
}

BAD_OPTIONS: dict[str, Case] = {
    "unknown flag": (None, ON_TINY + "--training.epoch 3", ("--training.epoch:", "did you mean --training.epochs?")),
    "unknown flag with =": (None, ON_TINY + "--objektive=at", ("--objektive:", "did you mean --objective?")),
    "unknown flag like none": (None, ON_TINY + "--xyzzy 3", ("--xyzzy", "aalp train --help")),
    "unknown flag to evaluate": (None, "evaluate done --atacks fgsm", ("--atacks", "did you mean --attacks?")),
    "a word too many": (None, ON_TINY + "more", ("more", "--help")),
    "unknown option in YAML": (
        yaml_file("data: npz:tiny.npz\ntraining: {epoch: 3}"),
        "train --run run --config my.yaml",
        ("training.epoch:", "did you mean training.epochs?"),
    ),
    "unknown top option in YAML": (
        yaml_file("data: npz:tiny.npz\nmodle: small-cnn"),
        "train --run run --config my.yaml",
        ("modle:", "did you mean model?"),
    ),
    "ill-typed flag": (None, ON_TINY + "--training.epochs three", ("--training.epochs", "three", "--help")),
    "ill-typed choice": (None, ON_TINY + "--training.schedule cosine", ("--training.schedule", "cosine", "one-cycle")),
    "ill-typed option in YAML": (
        yaml_file("data: npz:tiny.npz\ntraining: {lr: fast}"),
        "train --run run --config my.yaml",
        ("training.lr", "fast", "--help"),
    ),
    "a list in YAML where a number goes": (
        yaml_file("data: npz:tiny.npz\nseed: [1, 2]"),
        "train --run run --config my.yaml",
        ("seed", "[1, 2]"),
    ),
    "broken YAML": (yaml_file("data: [digits\nseed: 1"), "train --run run --config my.yaml", ("my.yaml",)),
    "YAML that is no mapping": (yaml_file("- data\n- digits"), "train --run run --config my.yaml", ("my.yaml",)),
    "YAML that is binary": (
        lambda folder: (folder / "my.yaml").write_bytes(b"\xff\xfe\x00\x93"),
        "train --run run --config my.yaml",
        ("my.yaml",),
    ),
    "flag without value": (None, ON_TINY + "--objective", ("objective", "expected one argument")),
    "evaluate without path": (None, "evaluate", ("path", "--help")),
    "compare without run": (None, "compare --data npz:tiny.npz", ("run", "--help")),
    "eps of zero": (None, ON_TINY + "--threat.eps 0", ("eps is 0", "positive number", "8/255")),
    "eps below zero": (None, ON_TINY + "--threat.eps=-0.1", ("eps is -0.1", "positive number", "8/255")),
    "eps that is no number": (None, ON_TINY + "--threat.eps much", ("eps is 'much'", "8/255")),
    "eps of nan": (None, ON_TINY + "--threat.eps nan", ("eps is 'nan'", "8/255")),
    "eps over zero": (None, ON_TINY + "--threat.eps 8/0", ("eps is '8/0'", "8/255")),
    "infinite eps": (None, ON_TINY + "--threat.eps inf", ("eps is inf", "positive number")),
    "eps below zero to evaluate": (None, "evaluate done --attacks fgsm --eps=-1/255", ("eps is -0.0039", "positive")),
    "eps that is no number to evaluate": (None, "evaluate done --attacks fgsm --eps much", ("eps is 'much'", "8/255")),
    "unknown norm": (None, ON_TINY + "--threat.norm l1", ("norm", "l1", "linf")),
    "probability of one": (
        None,
        ON_TINY + "--method.dropout.probability 1",
        ("dropout probability is 1", "[0, 1)"),
    ),
    "probability of one in YAML": (
        yaml_file("data: npz:tiny.npz\nmethod: {dropout: {probability: 1.5}}"),
        "train --run run --config my.yaml",
        ("dropout probability is 1.5", "[0, 1)"),
    ),
    "unknown rule": (None, ON_TINY + "--method.weights.rule sure", ("rule", "sure", "confidence")),
    "a negative weight": (None, ON_TINY + "--method.pairing_weight=-1", ("pairing_weight is -1", "at least 0")),
    "a number of another objective": (
        None,
        ON_TINY + "--objective at --method.beta 6",
        ("method beta", "objective 'at'", "no numbers"),
    ),
    "a module of another objective": (
        None,
        ON_TINY + "--objective at --method.dropout.probability 0.3",
        ("dropout", "objective 'at'"),
    ),
    "no epochs": (None, ON_TINY + "--training.epochs 0", ("epochs is 0", "at least 1")),
    "an endless learning rate": (None, ON_TINY + "--training.lr inf", ("training.lr", "inf")),
    "an average that never moves": (None, ON_TINY + "--training.ema 1", ("ema is 1", "[0, 1)")),
    "milestones that fall": (
        None,
        ON_TINY + "--training.milestones [0.7,0.5]",
        ("milestones is [0.7, 0.5]", "rising"),
    ),
    "no attack steps": (None, ON_TINY.replace("--attack.steps 1", "--attack.steps 0"), ("steps is 0", "at least 1")),
    "no images to evaluate": (None, "evaluate done --attacks fgsm --images 0", ("images is 0", "at least 1")),
    "no batch to evaluate": (None, "evaluate done --attacks fgsm --batch_size 0", ("batch_size is 0", "at least 1")),
    "seeds that are no numbers": (None, COMPARE + "--objectives at --seeds 0,x", ("seeds is '0,x'", "0,1,2")),
    "no seeds": (None, COMPARE + "--objectives at --seeds=,", ("seeds is ','", "0,1,2")),
    "no objectives": (None, COMPARE + "--objectives=,", ("objectives", "at least one")),
    "a seed that is no number": (None, ON_TINY + "--seed one", ("seed", "one", "--help")),
    "a batch larger than the data": (
        None,
        ON_TINY.replace("batch_size 16", "batch_size 128"),
        ("65 images", "batch of 128", "--training.batch_size"),
    ),
    "a batch larger than the data to compare": (
        None,
        COMPARE.replace("batch_size 16", "batch_size 128") + "--objectives at",
        ("65 images", "batch of 128", "--training.batch_size"),
    ),
    "a mean for other channels": (
        None,
        ON_TINY + "--model_options.mean [0.5,0.5,0.5] --model_options.std [1,1,1]",
        ("3 channels", "(N, channels, height, width)"),
    ),
    "a deviation without mean": (None, ON_TINY + "--model_options.std [0.5]", ("std is (0.5,)", "give both")),
    "a deviation of 0": (
        None,
        ON_TINY + "--model_options.mean [0] --model_options.std [0]",
        ("std is [0.0]", "positive"),
    ),
}

ON_CHANGED = TRAIN + "--data npz:changed.npz"
FROM_FOLDER = TRAIN + "--data folder:pictures"

BAD_DATA: dict[str, Case] = {
    "a missing npz": (None, TRAIN + "--data npz:other.npz", ("'other.npz'", "x_train")),
    "pixels below 0": (
        arrays_with(x_train=lambda x: floats(x) - 0.5),
        ON_CHANGED,
        ("'changed.npz' train", "[-0.5, ", "scale them to [0, 1]"),
    ),
    "pixels above 1": (
        arrays_with(x_train=floats, x_test=lambda x: floats(x) * 255),
        ON_CHANGED,
        ("'changed.npz' test", ", 239]", "scale them to [0, 1]"),
    ),
    "a pixel that is not a number": (
        arrays_with(x_train=with_value(np.nan)),
        ON_CHANGED,
        ("image 3", "not finite", "clean the data"),
    ),
    "an infinite pixel": (arrays_with(x_test=with_value(np.inf)), ON_CHANGED, ("test image 3", "not finite")),
    "integer pixels that are not bytes": (
        arrays_with(x_train=lambda x: x.astype(np.int64)),
        ON_CHANGED,
        ("int64", "uint8", "[0, 1]"),
    ),
    "pixels without images": (arrays_with(x_train=lambda x: x.reshape(len(x), -1)), ON_CHANGED, ("(72, 64)", "height")),
    "a label below 0": (arrays_with(y_train=with_value(-1)), ON_CHANGED, ("label -1", "0..2")),
    "a label of the test images alone": (arrays_with(y_test=with_value(3)), ON_CHANGED, ("label 3", "0..2")),
    "only one class": (arrays_with(y_train=np.zeros_like, y_test=np.zeros_like), ON_CHANGED, ("class", "2")),
    "labels that are fractions": (arrays_with(y_train=lambda y: y + 0.5), ON_CHANGED, ("float64", "integers 0..C-1")),
    "labels that are text": (
        arrays_with(y_train=lambda y: y.astype(str)),
        ON_CHANGED,
        ("labels of type <U", "integers 0..C-1"),
    ),
    "labels one-hot": (arrays_with(y_train=lambda y: np.eye(3, dtype=int)[y]), ON_CHANGED, ("(72, 3)", "one integer")),
    "fewer labels than images": (
        arrays_with(y_train=lambda y: y[:70]),
        ON_CHANGED,
        ("72 images and 70 labels", "one label an image"),
    ),
    "no images": (arrays_with(x_test=lambda x: x[:0], y_test=lambda y: y[:0]), ON_CHANGED, ("test has no images",)),
    "other sizes to test on": (
        arrays_with(x_test=lambda x: x[:, :, :7]),
        ON_CHANGED,
        ("(1, 8, 8)", "(1, 8, 7)", "have to agree"),
    ),
    "images too small for the model": (
        arrays_with(x_train=lambda x: x[:, :3, :3], x_test=lambda x: x[:, :3, :3]),
        ON_CHANGED,
        ("3x3", "at least 4x4"),
    ),
    "an npz that lacks keys": (
        arrays_with(x_test=None, y_test=None),
        ON_CHANGED,
        ("lacks x_test, y_test", "x_train, y_train"),
    ),
    "an npz of objects": (
        arrays_with(y_train=lambda y: np.array([*y[:-1], Creates("executed")], dtype=object)),
        ON_CHANGED,
        ("'changed.npz'", "plain arrays"),
    ),
    "an npz that is none": (text_file("changed.npz", "x_train"), ON_CHANGED, ("'changed.npz'", "plain arrays")),
    "a missing folder": (None, FROM_FOLDER, ("'pictures'", "train/ and test/")),
    "an empty folder": (empty_folder("pictures"), FROM_FOLDER, ("'pictures'", "at least 2")),
    "one class folder": (images("pictures/cat"), FROM_FOLDER, ("'pictures' has 1 class folder", "at least 2")),
    "a class folder without images": (
        both(images("pictures/cat"), empty_folder("pictures/dog")),
        FROM_FOLDER,
        ("'pictures/dog' has no images", "remove the folder", ".png"),
    ),
    "a class of one image": (
        both(
            images("pictures/cat", "pictures/dog"),
            lambda folder: [(folder / "pictures/dog" / f"{number}.png").unlink() for number in (0, 1)],
        ),
        FROM_FOLDER,
        ("'pictures'", "at least 2"),
    ),
    "classes that differ between the splits": (
        images(*(f"pictures/{name}" for name in ("train/cat", "train/dog", "test/cat", "test/cow"))),
        FROM_FOLDER,
        ("'pictures'", "cow, dog"),
    ),
    "a train folder with an empty test folder": (
        both(images("pictures/train/cat", "pictures/train/dog"), empty_folder("pictures/test")),
        FROM_FOLDER,
        ("'pictures/test'",),
    ),
    "an unreadable image": (
        both(images("pictures/cat", "pictures/dog"), text_file("pictures/dog/1.png", "no picture")),
        FROM_FOLDER,
        ("'pictures/dog/1.png' is not a readable image", "remove or replace it"),
    ),
    "an unreadable first image": (
        both(images("pictures/cat", "pictures/dog"), text_file("pictures/cat/00.png", "no picture")),
        FROM_FOLDER,
        ("'pictures/cat/0", "is not a readable image", "remove or replace it"),
    ),
    "an unreadable image that stays on disk": (
        both(images("pictures/cat", "pictures/dog"), text_file("pictures/dog/1.png", "no picture")),
        FROM_FOLDER + " --data_options.memory_limit 0 --data_options.workers 0 --training.batch_size 1",
        ("'pictures/dog/1.png' is not a readable image", "remove or replace it"),
    ),
    "images of several sizes": (
        images("pictures/cat", "pictures/dog*"),
        FROM_FOLDER,
        ("9x8", "8x8", "--data_options.size"),
    ),
    "a size of nothing": (
        images("pictures/cat", "pictures/dog"),
        FROM_FOLDER + " --data_options.size 0",
        ("size is 0",),
    ),
    "a share of everything": (
        images("pictures/cat", "pictures/dog"),
        FROM_FOLDER + " --data_options.test_share 1",
        ("test_share is 1", "between 0 and 1"),
    ),
}

BAD_MODELS: dict[str, Case] = {
    "a model that returns probabilities": (
        None,
        ON_TINY + "--model bad_factories:probabilities",
        ("not what the network's last Linear", "no softmax"),
    ),
    "a model that returns probabilities to compare": (
        None,
        COMPARE + "--objectives at --model bad_factories:probabilities",
        ("not what the network's last Linear", "no softmax"),
    ),
    "a model of other classes": (
        None,
        ON_TINY + "--model bad_factories:eleven",
        ("'bad_factories:eleven' has 11 classes", "build it for 3"),
    ),
    "a model without a Linear": (None, ON_TINY + "--model bad_factories:headless", ("torch.nn.Linear", "rewritten")),
    "a model for other images": (None, ON_TINY + "--model bad_factories:wrong_size", ("does not take images of", "1x8x8")),
    "a factory that raises": (
        None,
        ON_TINY + "--model bad_factories:raises",
        ("'bad_factories:raises' does not build", "no such luck"),
    ),
    "a factory that returns text": (
        None,
        ON_TINY + "--model bad_factories:text",
        ("'bad_factories:text' gave a str", "torch.nn.Module"),
    ),
    "a factory that is missing": (
        None,
        ON_TINY + "--model bad_factories:nothing",
        ("nothing", "package.module:factory"),
    ),
    "a module that is missing": (None, ON_TINY + "--model no_module:net", ("no_module", "package.module:factory")),
    "a module that is not Python": (
        text_file("bad_factories.py", "def net("),
        ON_TINY + "--model bad_factories:net",
        ("bad_factories:net",),
    ),
}

BAD_RUNS: dict[str, Case] = {
    "a missing run": (None, "evaluate other", ("'other' does not exist", "name a run directory")),
    "a run that is a folder": (
        empty_folder("other"),
        "evaluate other",
        ("'other' is not a run directory", "aalp train"),
    ),
    "a missing weights file": (
        None,
        "evaluate other/weights.safetensors",
        ("'other/weights.safetensors' does not exist",),
    ),
    "a run without weights": (
        lambda folder: (folder / "done/weights/best.safetensors").unlink(),
        "evaluate done",
        ("'done' has no best weights", "--resume done"),
    ),
    "a foreign checkpoint without model": (
        small_weights,
        EVALUATE_FOREIGN,
        ("'foreign.safetensors'", "--model"),
    ),
    "a foreign checkpoint without data": (
        small_weights,
        "evaluate foreign.safetensors --model small-cnn --eps 0.1",
        ("data is missing", "--data"),
    ),
    "a foreign checkpoint without eps": (
        small_weights,
        "evaluate foreign.safetensors --model small-cnn --data npz:tiny.npz --attacks fgsm",
        ("eps is missing", "--eps 8/255"),
    ),
    "a checkpoint of another model": (
        small_weights,
        EVALUATE_FOREIGN + "--model thin-resnet",
        ("'foreign.safetensors' do not fit the model",),
    ),
    "a training state": (
        lambda folder: (folder / "done/states/step-00000008.safetensors").rename(folder / "state.safetensors"),
        "evaluate state.safetensors --data npz:tiny.npz",
        ("'state.safetensors'", "training state"),
    ),
    "a checkpoint of a later format": (
        lambda folder: save_file({"w": torch.zeros(1)}, folder / "new.safetensors", {"aalp": '{"format": 3}'}),
        "evaluate new.safetensors --data npz:tiny.npz --model small-cnn --eps 0.1",
        ("'new.safetensors' has format 3", "use the aalp version that wrote it"),
    ),
    "a pickle with code in it": (
        evil_pickle,
        EVALUATE_FOREIGN.replace("foreign.safetensors", "evil.pt") + "--model small-cnn",
        ("'evil.pt' is not a plain state dict", "state_dict() as safetensors"),
    ),
    "a torch file with code in it": (
        evil_zip,
        EVALUATE_FOREIGN.replace("foreign.safetensors", "evil.pt") + "--model small-cnn",
        ("'evil.pt' is not a plain state dict", "state_dict() as safetensors"),
    ),
    "a torch file with other things": (
        lambda folder: torch.save({"epoch": 3, "weight": torch.zeros(1)}, folder / "more.pt"),
        EVALUATE_FOREIGN.replace("foreign.safetensors", "more.pt") + "--model small-cnn",
        ("'more.pt' holds other things than tensors", "state_dict() alone"),
    ),
    "a torn checkpoint": (torn, "evaluate done", ("best.safetensors' is not a readable safetensors file",)),
    "a text file as checkpoint": (
        text_file("text.safetensors", "weights"),
        EVALUATE_FOREIGN.replace("foreign.safetensors", "text.safetensors") + "--model small-cnn",
        ("'text.safetensors' is not a readable safetensors file",),
    ),
    "weights of other classes": (
        lambda folder: write_tiny(folder, classes=4),
        "evaluate done --attacks fgsm --data npz:changed.npz",
        ("3 classes", "'npz:changed.npz' has 4"),
    ),
    "weights for images of another size": (
        lambda folder: write_tiny(folder, size=12),
        "evaluate done --attacks fgsm --data npz:changed.npz",
        ("8x8", "12x12"),
    ),
    "a run whose configuration is broken": (
        text_file("done/config.yaml", "data: ["),
        "evaluate done",
        ("config.yaml'",),
    ),
    "a run whose configuration is of another kind": (
        text_file("done/config.yaml", "threat: 3\ndata: npz:tiny.npz"),
        "evaluate done",
        ("threat",),
    ),
    "a run whose configuration has foreign data options": (
        text_file("done/config.yaml", "data_options: {sise: 3}\ndata: npz:tiny.npz"),
        "evaluate done",
        ("sise",),
    ),
    "an existing run": (None, ON_TINY.replace("--run run", "--run done"), ("'done' exists already", "--resume done")),
    "an existing file as run": (
        None,
        ON_TINY.replace("--run run", "--run tiny.npz"),
        ("'tiny.npz' exists already", "choose another --run"),
    ),
    "a run inside a file": (
        None,
        ON_TINY.replace("--run run", "--run tiny.npz/run"),
        ("'tiny.npz/run' cannot be made", "choose another --run"),
    ),
    "to resume what is missing": (
        None,
        "train --resume other",
        ("'other' is not a run directory", "`aalp train` made"),
    ),
    "to resume something else": (empty_folder("other"), "train --resume other", ("'other' is not a run directory",)),
    "to resume nothing": (None, "train --resume", ("--resume", "value")),
    "to resume a run without states": (
        lambda folder: shutil.rmtree(folder / "done/states"),
        "train --resume done",
        ("'done' has no saved state", "start a new run"),
    ),
    "to resume a torn state": (
        lambda folder: [path.write_bytes(b"torn") for path in (folder / "done/states").iterdir()],
        "train --resume done",
        ("no saved state of 'done' can be read", "step-00000008.safetensors' is not a readable", "start a new run"),
    ),
    "to resume with other options": (
        None,
        "train --resume done --training.epochs 3",
        ("'done' was begun with another training", "training.epochs was 2 and is 3", "`aalp train --resume done` alone"),
    ),
    "to resume with other options before": (
        None,
        "train --seed=1 --resume=done",
        ("'done' was begun with another seed", "seed was 0 and is 1", "`aalp train --resume done` alone"),
    ),
    "to resume with a configuration": (
        None,
        "train --config digits --resume done",
        ("'done' was begun with another data", "was npz:", "is digits"),
    ),
    "a comparison begun with other options": (begun, COMPARE + "--objectives at", ("'run' was begun with another",)),
    "a comparison where something else is": (
        text_file("run", "mine"),
        COMPARE + "--objectives at",
        ("'run'", "choose another --run"),
    ),
    "a comparison in some folder": (
        both(empty_folder("run"), text_file("run/notes.txt", "mine")),
        COMPARE + "--objectives at",
        ("'run'", "choose another --run"),
    ),
}

CASES = {**BAD_NAMES, **BAD_OPTIONS, **BAD_DATA, **BAD_MODELS, **BAD_RUNS}


def test_no_case_hides_another() -> None:
    assert len(CASES) == sum(len(table) for table in (BAD_NAMES, BAD_OPTIONS, BAD_DATA, BAD_MODELS, BAD_RUNS))


@pytest.mark.parametrize(("given", "words", "needles"), CASES.values(), ids=CASES.keys())
def test_bad_input_gets_one_line_with_the_value_and_the_remedy_and_changes_nothing(
    given: Given | None, words: str, needles: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
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
