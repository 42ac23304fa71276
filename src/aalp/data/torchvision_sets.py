"""Data sets that torchvision downloads and checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from aalp.data.arrays import as_images, check_images
from aalp.data.split import Loaded, ResidentSplit
from aalp.errors import DataError, unknown_name

TORCHVISION = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")


def download(argument: str, root: Path) -> Loaded:
    """The splits of a data set; downloaded where `root` does not hold it yet.

    Raises:
        DataError: its name is unknown, or it cannot be downloaded.
    """
    from torchvision import datasets

    if argument not in TORCHVISION:
        raise DataError(unknown_name("torchvision data set", argument, TORCHVISION))
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
        images = torch.from_numpy(array) if argument == "SVHN" else as_images(array, argument)
        labels = torch.as_tensor(np.asarray(dataset.labels if argument == "SVHN" else dataset.targets), dtype=torch.int64)
        splits.append(ResidentSplit(images, labels))
    num_classes = int(splits[0].labels.max()) + 1
    names: Sequence[str] = getattr(dataset, "classes", [str(label) for label in range(num_classes)])
    for split in splits:
        check_images(split.pixels, split.labels, num_classes, argument)
    return Loaded(splits[0], splits[1], tuple(names))
