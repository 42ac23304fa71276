from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from aalp.data.paths import Paths

NAMES = ["/data/a/cat/1.png", "/data/a/cat/22.png", "/data/a/dög/é.png", "/data/a/x.png", "/data/a/cat/1.png"]


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        NAMES[:1],
        [],
        ["/1.png", "/b/2.png"],
        ["1.png", "b/2.png"],
        ["a/1.png"],
        ["a/1.png", "/a/2.png", "3.png"],
        [os.fsdecode(b"/data/\xff.png"), "/data/b"],
    ],
)
def test_paths_come_back_as_they_were(names: list[str]) -> None:
    paths = [Path(name) for name in names]
    kept = Paths(paths)
    assert len(kept) == len(paths)
    assert list(kept) == paths
    assert [kept[index] for index in range(-len(paths), len(paths))] == paths * 2
    assert list(kept[1:]) == paths[1:]


@pytest.mark.parametrize("indices", [[3, 0, 0], [], [4], [2, 1]])
def test_a_selection(indices: list[int]) -> None:
    paths = Paths([Path(name) for name in NAMES])
    chosen = paths.select(torch.tensor(indices, dtype=torch.int64))
    assert list(chosen) == [Path(NAMES[index]) for index in indices]
    assert chosen.select(np.arange(len(indices))) == chosen
    assert (chosen == paths) is False


def test_a_position_beyond_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        Paths([Path("/a/b")])[1]


def test_many_take_little_more_than_their_letters() -> None:
    paths = Paths([Path(f"/data/train/class-{number % 10}/{number:06d}.jpg") for number in range(10_000)])
    assert paths.letters.nbytes + paths.ends.nbytes < 40 * 10_000
