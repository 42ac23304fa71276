"""Augmentation of whole batches on their device: one call a batch, no work per image."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.distributed import Shard

Augmentation = Literal["none", "crop", "flip", "crop+flip", "resized-crop", "resized-crop+flip"]


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator | None = None, shard: Shard | None = None) -> Tensor:
    """Randomly shifted and mirrored images.

    Args:
        images: (N, channels, height, width), of any type; for `resized-crop` floats.
        kind: `crop` shifts by up to an eighth of the size in each direction, zero-padded (4 of 32 pixels); `flip`
            mirrors left to right with probability 1/2; `resized-crop` cuts out a random box and scales it back to the
            whole size, as is usual for photographs; with `+flip` mirrored as well.
        generator: source of randomness, on the images' device.
        shard: which rows of a batch the images are; what is drawn is drawn for the whole batch.
    """
    shard = shard or Shard(0, len(images), len(images))
    if "resized-crop" in kind:
        images = _resized_crop(images, generator, shard)
    elif "crop" in kind:
        images = _shift(images, generator, shard)
    if "flip" in kind:
        mirrored = torch.rand(shard.total, generator=generator, device=images.device)[shard.rows] < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def _shift(images: Tensor, generator: torch.Generator | None, shard: Shard) -> Tensor:
    count, _, height, width = images.shape
    down, across = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (across, across, down, down))
    draw = partial(torch.randint, 0, size=(shard.total, 1), generator=generator, device=images.device)
    rows = draw(2 * down + 1)[shard.rows] + torch.arange(height, device=images.device)
    columns = draw(2 * across + 1)[shard.rows] + torch.arange(width, device=images.device)
    image = torch.arange(count, device=images.device).view(-1, 1, 1)
    # Advanced indices around the channel slice put their dimensions first: (N, H, W, channels).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _resized_crop(images: Tensor, generator: torch.Generator | None, shard: Shard) -> Tensor:
    """Boxes of 8 to 100 % of the area and of 3:4 to 4:3, as Inception was trained with (arXiv 1409.4842), on whole batches."""
    count, _, height, width = images.shape
    chance = torch.rand(4, shard.total, generator=generator, device=images.device)[:, shard.rows]
    area, ratio = 0.08 + 0.92 * chance[0], torch.exp(math.log(4 / 3) * (2 * chance[1] - 1))
    # As shares of the height and of the width; a box that would stick out is cut to fit.
    across, down = (area * ratio * height / width).sqrt().clamp_max(1), (area / ratio * width / height).sqrt().clamp_max(1)
    move = torch.zeros(count, 2, 3, device=images.device)
    move[:, 0, 0], move[:, 1, 1] = across, down
    move[:, 0, 2], move[:, 1, 2] = (1 - across) * (2 * chance[2] - 1), (1 - down) * (2 * chance[3] - 1)
    grid = F.affine_grid(move, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)
