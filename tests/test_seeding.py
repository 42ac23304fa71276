from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from aalp.seeding import derive_seed


def test_seeds_have_32_bits_and_differ_with_every_part() -> None:
    purposes = [(name, seed, step) for name in ("step", "order") for seed in range(20) for step in range(50)]
    seeds = [derive_seed(*purpose) for purpose in purposes]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert max(seeds) > 2**31
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("one", "other"), [(("a", 1, 2), ("a", 2, 1)), (("a", 12), ("a", 1, 2)), (("a",), ("b",)), ((), ("a",))]
)
def test_order_and_borders_of_the_parts_count(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert derive_seed(*one) != derive_seed(*other)


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "from aalp.seeding import derive_seed; print(derive_seed('step', 3, 4))"
    another = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    told = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": another}, capture_output=True, text=True, check=True
    )
    assert int(told.stdout) == derive_seed("step", 3, 4)


def test_different_seeds_give_torch_different_streams() -> None:
    first, second = (torch.rand(4, generator=torch.Generator().manual_seed(derive_seed("step", 0, step))) for step in (0, 1))
    assert not torch.equal(first, second)
