from __future__ import annotations

import pytest
import torch

from aalp.data.split import ResidentSplit, as_float, channel_statistics


def test_bytes_become_floats_between_0_and_1_and_floats_stay() -> None:
    assert torch.equal(as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 0.2, 1.0]))
    floats = torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(as_float(floats), floats)
    assert as_float(floats.double()).dtype == torch.float32


def test_a_split_knows_its_images_and_gives_them_by_position() -> None:
    split = ResidentSplit(torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).view(5, 3, 2, 4), torch.tensor([4, 3, 2, 1, 0]))
    assert split.image_shape == (3, 2, 4)
    assert len(split) == 5
    positions = torch.tensor([3, 0])
    assert torch.equal(split.read(positions), split.pixels[[3, 0]])
    subset = split.subset(positions)
    assert torch.equal(subset.pixels, split.pixels[[3, 0]])
    assert subset.labels.tolist() == [1, 4]


@pytest.mark.parametrize("as_bytes", [True, False])
def test_statistics_are_those_of_each_channel_by_hand(as_bytes: bool) -> None:
    # Channel 0 has the values 0, 0, 1, 1: mean 1/2, sample deviation sqrt(4 * 0.25 / 3). Channel 1 is 0.2 everywhere.
    pixels = torch.tensor([[[[0.0, 0.0]], [[0.2, 0.2]]], [[[1.0, 1.0]], [[0.2, 0.2]]]])
    pixels = (pixels * 255).round().byte() if as_bytes else pixels
    mean, deviation = channel_statistics(ResidentSplit(pixels, torch.tensor([0, 1])))
    assert mean == pytest.approx([0.5, 0.2])
    # A channel that never changes gets the smallest step of a pixel instead of 0.
    assert deviation == pytest.approx([(1 / 3) ** 0.5, 1 / 255])


def test_statistics_of_many_images_come_from_an_even_sample() -> None:
    pixels = torch.linspace(0, 1, 1001).view(-1, 1, 1, 1)
    split = ResidentSplit(pixels, torch.zeros(1001, dtype=torch.int64))
    mean, deviation = channel_statistics(split, at_most=11)
    assert mean == pytest.approx([0.5])
    assert deviation == pytest.approx([float(torch.linspace(0, 1, 11).std())])
