"""Augmentation of whole batches on their device: one call a batch, no work per image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.distributed import Shard

Augmentation = Literal["none", "crop", "flip", "crop+flip"]


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator | None = None, shard: Shard | None = None) -> Tensor:
    """Randomly shifted and mirrored images.

    Args:
        images: (N, channels, height, width), any type.
        kind: `crop` shifts by up to an eighth of the size in each direction, zero-padded (4 of 32 pixels); `flip`
            mirrors left to right with probability 1/2; `crop+flip` does both.
        generator: source of randomness, on the images' device.
        shard: which rows of a batch the images are; what is drawn is drawn for the whole batch.
    """
    shard = shard or Shard(0, len(images), len(images))
    if "crop" in kind:
        images = _shift(images, generator, shard)
    if "flip" in kind:
        mirrored = torch.rand(shard.total, generator=generator, device=images.device)[shard.rows] < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def _shift(images: Tensor, generator: torch.Generator | None, shard: Shard) -> Tensor:
    count, _, height, width = images.shape
    reach = max(1, height // 8)
    padded = F.pad(images, (reach, reach, reach, reach))
    offsets = torch.randint(0, 2 * reach + 1, (2, shard.total, 1), generator=generator, device=images.device)[:, shard.rows]
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    image = torch.arange(count, device=images.device).view(-1, 1, 1)
    # Advanced indices around the channel slice put their dimensions first: (N, H, W, channels).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
