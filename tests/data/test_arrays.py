"""Labels of an array, by hand; what is refused is in `test_sources.py`."""

from __future__ import annotations

import torch

from aalp.data.arrays import largest_class


def test_the_best_constant_answer_by_hand() -> None:
    assert largest_class(torch.tensor([2, 0, 2, 1])) == 0.5
    assert largest_class(torch.tensor([], dtype=torch.int64)) == 0.0
