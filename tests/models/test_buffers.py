"""Statistics that a block changes come back after it."""

from __future__ import annotations

import torch
from torch import nn

from aalp.models.buffers import kept_buffers


def test_statistics_come_back_exactly_also_after_an_error() -> None:
    norm = nn.BatchNorm1d(2)
    before = [buffer.clone() for buffer in norm.buffers()]
    for error in (None, KeyboardInterrupt):
        try:
            with kept_buffers(norm):
                norm(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
                assert not torch.equal(norm.running_mean, before[0])
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert all(torch.equal(now, then) for now, then in zip(norm.buffers(), before, strict=True))
