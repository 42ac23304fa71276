"""Data sources by name: `digits`, `npz:FILE`, `folder:DIR`, `csv:FILE`, `hf:FOLDER_OR_NAME`, `torchvision:NAME`.

A source has a training and a test split of images and integer labels. What fits in memory is
decoded once to uint8; larger collections of images stay on disk and are read batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from aalp.data import hugging_face
from aalp.data.arrays import open_npz, resized, with_channels
from aalp.data.csv_file import open_csv
from aalp.data.digest import digest_of
from aalp.data.folder import open_folder
from aalp.data.images import Layout, Resizing
from aalp.data.loaders import Tick
from aalp.data.paths import shown
from aalp.data.split import Loaded, ResidentSplit, Split, held_out, resident_bytes
from aalp.data.stored import StoredSplit
from aalp.data.torchvision_sets import download
from aalp.errors import DataError, OptionError, unknown_name


@dataclass(frozen=True)
class DataOptions:
    """Options of the data besides the source's name."""

    size: int | None = None
    """Resize all images to this height and width; needed where the sizes of files differ."""

    resizing: Resizing = "stretch"
    """How: stretch both sides, or scale the shorter side and crop the middle, which keeps proportions."""

    channels: Literal[1, 3] | None = None
    """Turn images grey (1) or into colour (3), as a published model may need it; by default as the first image is."""

    test_share: float = 0.2
    """Share of the images that becomes the test split where the source has none (folder without train/ and test/)."""

    root: Path | None = None
    """Folder that the paths of a CSV are relative to, and that they may not lead out of; by default the CSV's own."""

    label_column: str | None = None
    """Column of the labels of a CSV (by default label) or of a Hugging Face data set (by default its only one of classes)."""

    images: int | None = None
    """At most this many images of each split, drawn by split_seed, for a quick try; by default all."""

    streaming: bool = False
    """Read a Hugging Face data set over the network into memory, as it comes, instead of downloading it first."""

    split_seed: int = 0
    """Seed of the split into training, validation and test images; the training seed does not change it."""

    validation: int | None = None
    """Images held out of the training split for model selection; by default 1,000, or a tenth of it if that is less. A source \
with validation images of its own gives those, at most this many."""

    memory_limit: float = 4.0
    """Gigabytes of decoded images that may stay in memory; more than that are read by workers as it goes."""

    workers: int = 2
    """Worker processes that read images which do not stay in memory."""

    cache: Path = Path("~/.cache/aalp")
    """Where torchvision data sets are downloaded to."""

    def __post_init__(self) -> None:
        if self.size is not None and not 4 <= self.size <= 4096:
            raise OptionError(f"data size is {self.size}: it has to lie between 4 and 4096 pixels")
        if not 0 < self.test_share < 1:
            raise OptionError(f"data test_share is {self.test_share}: give a share above 0 and below 1, such as 0.99")
        if self.images is not None and self.images < 2:
            raise OptionError(f"data images is {self.images}: it has to be at least 2")
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
        digest: of the images that are trained on or held out, and of the test images, see `digest_of`.
        stored: whole training split, validation and test images as they lie on disk, also where they were decoded into memory.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    stored: tuple[Split, Split, Split] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.image_shape

    @cached_property
    def validation_digest(self) -> str:
        """Of the validation images: `digest` tells neither which are held out nor what a source has of its own."""
        return digest_of(self.validation)

    def digests_read_otherwise(self) -> dict[str, str]:
        """`digest` and `validation_digest` of the same images under another memory_limit; none where it changes nothing.

        Of images that stay on disk it takes a pass over all of them.
        """
        if self.stored is None:
            return {}
        train, validation, test = self.stored
        decoded = not isinstance(self.train, ResidentSplit)
        return {
            "digest": digest_of(train, test, decoded=decoded),
            "validation_digest": digest_of(validation, decoded=decoded),
        }


def open_source(name: str, options: DataOptions) -> Loaded:
    """The splits of a data source, with stored images still undecoded.

    Raises:
        DataError: as for `load_source`.
    """
    kind, _, argument = name.partition(":")
    if kind not in READERS or bool(argument) != (kind != "digits"):
        known = ["digits", "npz:FILE", "folder:DIR", "csv:FILE", "hf:FOLDER_OR_NAME", "torchvision:NAME"]
        raise DataError(unknown_name("data source", name, known))
    if shown(name) != name:
        raise DataError(f"the data source '{shown(name)}' has a name that is not UTF-8, and records have to tell it: rename it")
    if options.streaming and kind != "hf":
        raise OptionError(f"data streaming is on and '{name}' is no Hugging Face data set: leave it out")
    loaded = READERS[kind](argument, options)
    if options.channels is not None and isinstance(loaded.train, ResidentSplit):
        loaded = _changed(
            loaded, lambda _, split: _repainted(split, lambda pixels: with_channels(pixels, options.channels or 1))
        )
    if options.images is not None and not options.streaming:
        loaded = _changed(loaded, lambda _, split: _some(split, options.images or 0, options.split_seed))
    if options.size is not None and isinstance(loaded.train, ResidentSplit):
        size = options.size
        _refuse_too_large(name, loaded.splits.values(), size, options.memory_limit)
        loaded = _changed(loaded, lambda _, split: _repainted(split, lambda pixels: resized(pixels, size, options.resizing)))
    return loaded


def check_columns(name: str, options: DataOptions) -> None:
    """Refuse options of a table for a source that has none, where they would do nothing.

    Not for what is read by the options of a run that was trained on other data: see `open_source`.

    Raises:
        OptionError: naming the option.
    """
    kind = name.partition(":")[0]
    if options.root is not None and kind != "csv":
        raise OptionError(f"data root is '{options.root}' and '{name}' is no CSV: leave it out")
    if options.label_column is not None and kind not in ("csv", "hf"):
        raise OptionError(f"data label_column is '{options.label_column}' and '{name}' has no columns: leave it out")


def load_source(name: str, options: DataOptions | None = None, tick: Tick = lambda what, done, total: None) -> Source:
    """A data source by name, checked and split.

    Args:
        name: `digits`; `npz:FILE` with x_train, y_train, x_test, y_test, maybe x_val and y_val; `folder:DIR` with train/ and
            test/ or with the class folders themselves; `csv:FILE` with the columns path and label, and maybe split;
            `hf:FOLDER_OR_NAME`; `torchvision:NAME` (MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN).
        tick: told how many of the images that are decoded into memory are done: thousands of photographs take minutes.

    Raises:
        DataError: the name is unknown or the data is not what it has to be.
    """
    options = options or DataOptions()
    loaded = open_source(name, options)
    as_stored = [split for split in loaded.splits.values() if isinstance(split, StoredSplit)]
    stored = (loaded.train, _training(name, loaded, options)[1], loaded.test) if as_stored else None
    if sum(split.decoded_bytes for split in as_stored) <= options.memory_limit * 1e9:
        loaded = _changed(loaded, lambda split_name, split: _decoded(split_name, split, tick))
    train, validation = _training(name, loaded, options)
    return Source(name, train, validation, loaded.test, loaded.classes, digest_of(loaded.train, loaded.test), stored)


def _training(name: str, loaded: Loaded, options: DataOptions) -> tuple[Split, Split]:
    """What is trained on, and what validates it."""
    if loaded.validation is not None:
        most = len(loaded.validation) if options.validation is None else options.validation
        return loaded.train, _some(loaded.validation, most, options.split_seed)
    order = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(options.split_seed))
    count = min(1000, len(loaded.train) // 10) if options.validation is None else options.validation
    if count >= len(loaded.train):
        raise OptionError(f"data validation is {count}: '{name}' has only {len(loaded.train)} training images")
    held, kept = held_out(loaded.train.labels, count, order)
    train, validation = (loaded.train.subset(rows.sort().values) for rows in (kept, held))
    return train, validation


def _decoded(name: str, split: Split, tick: Tick) -> Split:
    if not isinstance(split, StoredSplit):
        return split
    return split.decode(lambda done: tick(f"reading {name} images", done, len(split)))


def _changed(loaded: Loaded, change: Callable[[str, Split], Split]) -> Loaded:
    """Each split as a function of its name and itself gives it."""
    made = {name: change(name, split) for name, split in loaded.splits.items()}
    return replace(loaded, train=made["train"], test=made["test"], validation=made.get("validation"))


def _some(split: Split, count: int, seed: int) -> Split:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split if count >= len(split) else split.subset(order[:count].sort().values)


def _refuse_too_large(name: str, splits: Collection[Split], size: int, limit: float) -> None:
    before = next(iter(splits)).image_shape
    taken = resident_bytes(*splits) / 1e9 * size**2 / (before[1] * before[2])
    if before[1:] != (size, size) and taken > limit:
        raise DataError(
            f"'{name}' takes {taken:.1f} GB at size {size}, and memory_limit is {limit:g}: give a smaller size, "
            "--data_options.images, or a larger memory_limit"
        )


def _repainted(split: Split, change: Callable[[Tensor], Tensor]) -> Split:
    assert isinstance(split, ResidentSplit)
    return ResidentSplit(change(split.pixels), split.labels)


def _read_digits(_argument: str, _options: DataOptions) -> Loaded:
    from sklearn.datasets import load_digits  # the import costs a second: only for this source

    pixels, labels = load_digits(return_X_y=True)
    # 17 grey levels 0..16; as uint8 they are off by at most 1/510.
    images = torch.from_numpy(np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8))
    # The set has no split of its own: 500 images, drawn by a fixed seed, are the test split in every run.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    everything = ResidentSplit(images, torch.from_numpy(labels.astype(np.int64)))
    train, test = everything.subset(order[500:].sort().values), everything.subset(order[:500].sort().values)
    return Loaded(train, test, tuple(str(digit) for digit in range(10)))


def _read_npz(argument: str, _options: DataOptions) -> Loaded:
    return open_npz(Path(argument).expanduser())


def _layout(options: DataOptions) -> Layout:
    return Layout(options.size, options.channels, options.resizing)


def _read_folder(argument: str, options: DataOptions) -> Loaded:
    return open_folder(Path(argument).expanduser(), _layout(options), options.test_share, options.split_seed)


def _read_csv(argument: str, options: DataOptions) -> Loaded:
    path, label = Path(argument).expanduser(), options.label_column or "label"
    return open_csv(path, options.root, label, _layout(options), options.test_share, options.split_seed)


def _read_hugging_face(argument: str, options: DataOptions) -> Loaded:
    splits: Mapping[str, Split]
    layout, seed = _layout(options), options.split_seed
    if options.streaming:
        limit = options.memory_limit * 1e9
        splits, classes = hugging_face.stream(argument, options.label_column, layout, options.images, limit, seed)
    else:
        splits, classes = hugging_face.open_rows(argument, options.label_column, layout, options.test_share, seed)
    return Loaded(splits["train"], splits["test"], classes, splits.get("validation"))


def _read_torchvision(argument: str, options: DataOptions) -> Loaded:
    return download(argument, options.cache.expanduser())


READERS: dict[str, Callable[[str, DataOptions], Loaded]] = {
    "digits": _read_digits,
    "npz": _read_npz,
    "folder": _read_folder,
    "csv": _read_csv,
    "hf": _read_hugging_face,
    "torchvision": _read_torchvision,
}
"""Readers by the word before the colon: (what follows it, options) -> splits."""
