"""Data sources by name: `digits`, `npz:FILE`, `folder:DIR`, `torchvision:NAME`.

A source has a training and a test split of images and integer labels. What fits in memory is
decoded once to uint8; a large image folder stays on disk and is read batch by batch.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aalp.data.folder import FileSplit, open_folder
from aalp.data.split import ResidentSplit, Split
from aalp.errors import DataError, OptionError, unknown_name


@dataclass(frozen=True)
class DataOptions:
    """Options of the data besides the source's name."""

    size: int | None = None
    """Resize the images of a folder to this height and width in pixels; needed where sizes differ."""

    test_share: float = 0.2
    """Share of the images that becomes the test split where the source has none (folder without train/ and test/)."""

    split_seed: int = 0
    """Seed of the split into training, validation and test images; the training seed does not change it."""

    validation: int | None = None
    """Images held out of the training split for model selection; by default 1,000, or a tenth of it if that is less."""

    memory_limit: float = 4.0
    """Gigabytes of decoded images that may stay in memory; a folder beyond it is read by workers as it goes."""

    workers: int = 2
    """Worker processes that read images which do not stay in memory."""

    cache: Path = Path("~/.cache/aalp")
    """Where torchvision data sets are downloaded to."""

    def __post_init__(self) -> None:
        if self.size is not None and not 4 <= self.size <= 4096:
            raise OptionError(f"data size is {self.size}: it has to lie between 4 and 4096 pixels")
        if not 0 < self.test_share < 1:
            raise OptionError(f"data test_share is {self.test_share}: it has to lie between 0 and 1")
        if self.validation is not None and self.validation < 0:
            raise OptionError(f"data validation is {self.validation}: it has to be at least 0")
        if self.workers < 0:
            raise OptionError(f"data workers is {self.workers}: it has to be at least 0")
        if not self.memory_limit >= 0:
            raise OptionError(f"data memory_limit is {self.memory_limit}: it has to be at least 0 gigabytes")


@dataclass(frozen=True)
class Source:
    """Images and labels, split.

    Attributes:
        name: as the user gave it.
        train, validation, test: the splits; validation is held out of the source's training images.
        classes: class names, in label order.
        digest: sha256 over shapes, labels and pixels (resident) or paths, sizes and labels (on disk) of train and test.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    digest: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.image_shape


@dataclass(frozen=True)
class _Loaded:
    """What a reader brings before validation is held out."""

    train: Split
    test: Split
    classes: tuple[str, ...]


def load_source(name: str, options: DataOptions | None = None) -> Source:
    """A data source by name, checked and split.

    Args:
        name: `digits`; `npz:FILE` with x_train, y_train, x_test, y_test; `folder:DIR` with train/ and test/ or with
            the class folders themselves; `torchvision:NAME` (MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN).

    Raises:
        DataError: the name is unknown or the data is not what it has to be.
    """
    options = options or DataOptions()
    kind, _, argument = name.partition(":")
    if kind not in READERS or bool(argument) != (kind != "digits"):
        known = ["digits", "npz:FILE", "folder:DIR", "torchvision:NAME"]
        raise DataError(unknown_name("data source", name, known))
    loaded = READERS[kind](argument, options)
    held_out = min(1000, len(loaded.train) // 10) if options.validation is None else options.validation
    if held_out >= len(loaded.train):
        raise OptionError(f"data validation is {held_out}: '{name}' has only {len(loaded.train)} training images")
    order = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(options.split_seed))
    return Source(
        name=name,
        train=loaded.train.subset(order[held_out:].sort().values),
        validation=loaded.train.subset(order[:held_out].sort().values),
        test=loaded.test,
        classes=loaded.classes,
        digest=_digest(loaded),
    )


def check_images(images: Tensor, labels: Tensor, num_classes: int, what: str) -> None:
    """Refuse images and labels that no classifier can be trained or judged on.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    if len(images) != len(labels):
        raise DataError(f"{what} has {len(images)} images and {len(labels)} labels: there has to be one label an image")
    if len(images) == 0:
        raise DataError(f"{what} has no images: name a source with at least one")
    if images.dim() != 4:
        raise DataError(f"{what} has images of shape {tuple(images.shape)}: they have to be (N, channels, height, width)")
    if images.is_floating_point():
        if not torch.isfinite(images).all():
            position = int((~torch.isfinite(images).flatten(1).all(1)).nonzero()[0])
            raise DataError(f"{what} image {position} has a value that is not finite: clean the data first")
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise DataError(f"{what} has pixel values in [{low:g}, {high:g}]: scale them to [0, 1] or pass uint8")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() != 1:
        raise DataError(f"{what} has labels of type {labels.dtype} and shape {tuple(labels.shape)}: one integer an image")
    low_label, high_label = int(labels.min()), int(labels.max())
    if low_label < 0 or high_label >= num_classes:
        wrong = low_label if low_label < 0 else high_label
        raise DataError(f"{what} has the label {wrong}: labels have to be 0..{num_classes - 1}")


def _read_digits(_argument: str, _options: DataOptions) -> _Loaded:
    from sklearn.datasets import load_digits  # the import costs a second: only for this source

    pixels, labels = load_digits(return_X_y=True)
    # 17 grey levels 0..16; as uint8 they are off by at most 1/510.
    images = torch.from_numpy(np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8))
    # The set has no split of its own: 500 images, drawn by a fixed seed, are the test split in every run.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    everything = ResidentSplit(images, torch.from_numpy(labels.astype(np.int64)))
    train, test = everything.subset(order[500:].sort().values), everything.subset(order[:500].sort().values)
    return _Loaded(train, test, tuple(str(digit) for digit in range(10)))


def _read_npz(argument: str, _options: DataOptions) -> _Loaded:
    path = Path(argument).expanduser()
    if not path.is_file():
        raise DataError(f"there is no file '{path}': name an .npz with x_train, y_train, x_test and y_test")
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive.files]
            if missing:
                raise DataError(f"'{path}' lacks {', '.join(missing)}: it has {', '.join(archive.files) or 'nothing'}")
            arrays = {key: archive[key] for key in keys}
    except DataError:
        raise
    except Exception as error:  # numpy raises many kinds for a broken archive
        raise DataError(f"'{path}' is not a readable .npz of plain arrays: {error}") from error
    splits: list[ResidentSplit] = []
    num_classes = 1 + _largest_label(arrays["y_train"])
    for split in ("train", "test"):
        what = f"'{path}' {split}"
        images, labels = _images(arrays[f"x_{split}"], what), _labels(arrays[f"y_{split}"], what)
        check_images(images, labels, num_classes, what)
        splits.append(ResidentSplit(images, labels))
    if splits[0].image_shape != splits[1].image_shape:
        raise DataError(
            f"'{path}' has training images of {splits[0].image_shape} and test images of {splits[1].image_shape}: "
            "they have to agree"
        )
    if num_classes < 2:
        raise DataError(f"'{path}' has training labels of 1 class: at least 2 classes are needed")
    return _Loaded(splits[0], splits[1], tuple(str(label) for label in range(num_classes)))


def _refuse_bomb(path: Path) -> None:
    """Images shrink to a tenth at best; what shrinks to a thousandth was made to fill the memory.

    Raises:
        DataError: a member of the archive is small, and huge once unpacked.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > max(1e9, 200 * member.compress_size):
                size = f"{member.file_size / 1e9:.1f} GB out of {member.compress_size / 1e6:.1f} MB"
                raise DataError(f"'{path}' unpacks '{member.filename}' to {size}: save it anew if that is no mistake")


def _largest_label(labels: np.ndarray) -> int:
    return int(labels.max()) if labels.size and np.issubdtype(labels.dtype, np.integer) else 0


def _images(array: np.ndarray, what: str) -> Tensor:
    if array.dtype == np.uint8:
        images = torch.from_numpy(array)
    elif np.issubdtype(array.dtype, np.floating):
        images = torch.from_numpy(array.astype(np.float32))
    else:
        raise DataError(f"{what} has pixels of type {array.dtype}: give uint8, or floats in [0, 1]")
    if images.dim() == 3:  # (N, H, W), grey
        images = images[:, None]
    elif images.dim() == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)  # (N, H, W, channels), as Keras stores it
    return images.contiguous()


def _labels(array: np.ndarray, what: str) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{what} has labels of type {array.dtype}: give integers 0..C-1")
    labels = torch.from_numpy(array.astype(np.int64))
    return labels[:, 0] if labels.dim() == 2 and labels.shape[1] == 1 else labels  # (N, 1), as Keras stores CIFAR's


def _read_folder(argument: str, options: DataOptions) -> _Loaded:
    folder = open_folder(Path(argument).expanduser(), options.size, options.test_share, options.split_seed)
    limit = options.memory_limit * 1e9
    fits = folder.train.decoded_bytes + folder.test.decoded_bytes <= limit
    train, test = (split.decode() if fits else split for split in (folder.train, folder.test))
    return _Loaded(train, test, folder.classes)


def _read_torchvision(argument: str, options: DataOptions) -> _Loaded:
    from torchvision import datasets

    if argument not in TORCHVISION:
        raise DataError(unknown_name("torchvision data set", argument, TORCHVISION))
    root = options.cache.expanduser()
    splits: list[ResidentSplit] = []
    for training in (True, False):
        which = {"split": "train" if training else "test"} if argument == "SVHN" else {"train": training}
        try:
            dataset = getattr(datasets, argument)(str(root), download=True, **which)
        except Exception as error:  # network, disk and checksum errors come in many kinds
            raise DataError(
                f"{argument} could not be downloaded to {root}: {error}; try again, or put its files there by hand"
            ) from error
        array = np.asarray(dataset.data)
        images = torch.from_numpy(array) if argument == "SVHN" else _images(array, argument)
        labels = torch.as_tensor(np.asarray(dataset.labels if argument == "SVHN" else dataset.targets), dtype=torch.int64)
        splits.append(ResidentSplit(images, labels))
    num_classes = int(splits[0].labels.max()) + 1
    names: Sequence[str] = getattr(dataset, "classes", [str(label) for label in range(num_classes)])
    for split in splits:
        check_images(split.pixels, split.labels, num_classes, argument)
    return _Loaded(splits[0], splits[1], tuple(names))


TORCHVISION = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")

READERS: dict[str, Callable[[str, DataOptions], _Loaded]] = {
    "digits": _read_digits,
    "npz": _read_npz,
    "folder": _read_folder,
    "torchvision": _read_torchvision,
}
"""Readers by the word before the colon: (what follows it, options) -> splits."""


def _digest(loaded: _Loaded) -> str:
    digest = hashlib.sha256()
    for split in (loaded.train, loaded.test):
        digest.update(repr((len(split), split.image_shape)).encode())
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, ResidentSplit):
            digest.update(split.pixels.contiguous().numpy().tobytes())
        elif isinstance(split, FileSplit):
            for path in split.paths:
                digest.update(f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode())
    return digest.hexdigest()
