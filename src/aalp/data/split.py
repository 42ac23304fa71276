"""A split: images and labels that can be counted, cut into subsets and read by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Split(Protocol):
    """Images and labels of one split."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64 on the CPU."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        ...

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Split:
        """The split of these images only."""
        ...

    def read(self, indices: Tensor) -> Tensor:
        """Images (n, channels, height, width) at these positions, uint8, or float32 in [0, 1]."""
        ...


@dataclass(frozen=True)
class ResidentSplit:
    """A split that stays in memory.

    Attributes:
        pixels: (N, channels, height, width) uint8, or float32 in [0, 1].
        labels: (N,) int64.
    """

    pixels: Tensor
    labels: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ResidentSplit:
        return ResidentSplit(self.pixels[indices], self.labels[indices])

    def read(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


@dataclass(frozen=True)
class Loaded:
    """What a reader brings, before images are decoded and validation images are held out.

    Attributes:
        validation: the source's own validation images, if it has any.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        own = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **own, "test": self.test}


def as_float(pixels: Tensor) -> Tensor:
    """Images in [0, 1] as float32, whether they come as uint8 or as float."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def resident_bytes(*splits: Split) -> int:
    """What the images of the splits hold in memory; nothing for those that stay on disk."""
    return sum(split.pixels.nbytes for split in splits if isinstance(split, ResidentSplit))


def channel_statistics(split: Split, at_most: int = 10_000) -> tuple[list[float], list[float]]:
    """Per-channel mean and deviation of the split's images in [0, 1], from an even sample of at most `at_most` images."""
    sample = torch.linspace(0, len(split) - 1, min(len(split), at_most)).long()
    pixels = as_float(split.read(sample)).transpose(0, 1).flatten(1).double()
    # A channel that never changes would divide by zero; 1/255 is the smallest step a pixel can take.
    return pixels.mean(1).tolist(), pixels.std(1).clamp_min(1 / 255).tolist()


def held_out(labels: Tensor, count: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """The first `count` rows of an order and the others, which keep an image of every class if there are enough of them."""
    held, kept = order[:count].clone(), order[count:].clone()
    counts = torch.bincount(labels)
    left = torch.bincount(labels[kept], minlength=len(counts))
    for label in ((counts > 0) & (left == 0)).nonzero()[:, 0].tolist():
        plenty = (left[labels[kept]] > 1).nonzero()[:, 0]
        if len(plenty):
            back, given = (labels[held] == label).nonzero()[0, 0], plenty[0]
            left[label] += 1
            left[labels[kept[given]]] -= 1
            held[back], kept[given] = kept[given].clone(), held[back].clone()
    return held, kept
