from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.data.augment import Augmentation, augment


def numbered(count: int, channels: int, height: int, width: int) -> Tensor:
    """Images in which no two pixels are equal, none of them 0."""
    pixels = 1 + torch.arange(channels * height * width, dtype=torch.float32)
    return pixels.view(1, channels, height, width).repeat(count, 1, 1, 1)


def shifts(image: Tensor, down: int, across: int) -> dict[tuple[int, int], Tensor]:
    """The image moved by each offset of up to so many rows and columns, with zeros where nothing was."""
    height, width = image.shape[1:]
    padded = F.pad(image, (across, across, down, down))
    offsets = itertools.product(range(2 * down + 1), range(2 * across + 1))
    return {(row, column): padded[:, row : row + height, column : column + width] for row, column in offsets}


@pytest.mark.parametrize(
    ("channels", "height", "width", "down", "across"),
    [(3, 32, 32, 4, 4), (1, 8, 8, 1, 1), (2, 16, 12, 2, 1), (1, 4, 4, 1, 1), (1, 32, 8, 4, 1), (1, 8, 32, 1, 4)],
)
def test_crop_gives_every_shift_up_to_an_eighth_and_no_other(
    channels: int, height: int, width: int, down: int, across: int
) -> None:
    images = numbered(1000, channels, height, width)
    table = shifts(images[0], down, across)
    seen = set()
    for image in augment(images, "crop", torch.Generator().manual_seed(0)):
        matching = [offset for offset, shifted in table.items() if torch.equal(image, shifted)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert seen == set(table)


def test_flip_mirrors_about_half_of_the_images_left_to_right() -> None:
    images = numbered(1000, 3, 4, 5)
    flipped = augment(images, "flip", torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 400 < int(mirrored.sum()) < 600


def test_crop_and_flip_together_do_both() -> None:
    images = numbered(200, 1, 8, 8)
    table = [shifted.flip(2) if mirror else shifted for shifted in shifts(images[0], 1, 1).values() for mirror in (0, 1)]
    seen = set()
    for image in augment(images, "crop+flip", torch.Generator().manual_seed(0)):
        (match,) = [number for number, candidate in enumerate(table) if torch.equal(image, candidate)]
        seen.add(match)
    assert len(seen) > len(table) // 2


def test_no_augmentation_leaves_images_alone() -> None:
    images = numbered(3, 1, 8, 8)
    assert augment(images, "none") is images


@pytest.mark.parametrize("kind", ["crop", "flip", "crop+flip"])
def test_augmentation_depends_on_its_generator_alone_and_changes_no_input(kind: Augmentation) -> None:
    images = numbered(50, 1, 8, 8)
    original, state = images.clone(), torch.get_rng_state()
    first, second, other = (augment(images, kind, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, original)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["crop", "flip", "crop+flip"])
def test_bytes_stay_bytes_and_are_moved_as_floats_are(kind: Augmentation) -> None:
    images = numbered(20, 1, 8, 8)
    as_bytes = augment(images.byte(), kind, torch.Generator().manual_seed(0))
    assert as_bytes.dtype == torch.uint8
    assert torch.equal(as_bytes.float(), augment(images, kind, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["resized-crop", "resized-crop+flip"])
def test_a_resized_crop_shows_a_part_of_the_image_at_its_whole_size(kind) -> None:
    # The pixel's value is its column: a box is a stretch of them, in order, that spans as much as its share of the width.
    images = torch.linspace(0, 1, 32).expand(500, 3, 24, 32).contiguous()
    changed = augment(images, kind, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    rows = changed[:, 0, 12]
    span = (rows.amax(1) - rows.amin(1)) * 32 / 31
    rising = (rows[:, -1] > rows[:, 0]).float().mean()
    assert rising == 1 if kind == "resized-crop" else 0.4 < rising < 0.6
    # Areas of 8 to 100 % in boxes of 3:4 to 4:3 of 24x32 pixels: widths from 21 % to the whole.
    assert 0.15 < span.min() < 0.3
    assert span.max() > 0.95
    again = augment(images, kind, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)
