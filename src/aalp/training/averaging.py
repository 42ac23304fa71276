"""Exponential moving average of the weights: the averaged model is what is validated, evaluated and exported."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Averager:
    """Keeps a shadow of a module: shadow = d * shadow + (1 - d) * weights, d = min(decay, (1 + t) / (10 + t)) at step t.

    The growing decay lets the average forget the random start early on (as in SEAT, arXiv 2203.09678). BatchNorm
    statistics are averaged like weights; integer buffers are copied.

    Args:
        module: the module to follow.
        decay: in [0, 1); 0 makes the shadow a copy of the weights.
    """

    def __init__(self, module: Module, decay: float) -> None:
        self.shadow = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        sources, targets = module.state_dict(keep_vars=True), self.shadow.state_dict(keep_vars=True)
        floating = [name for name, value in sources.items() if value.is_floating_point()]
        self._averaged = [sources[name] for name in floating], [targets[name] for name in floating]
        copied = [name for name in sources if name not in set(floating)]
        self._copied = [sources[name] for name in copied], [targets[name] for name in copied]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the shadow towards the weights after optimizer step number `step` (from 0)."""
        sources, targets = self._averaged
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([t.data for t in targets], [s.data for s in sources], 1.0 - decay)
        for source, target in zip(*self._copied, strict=True):
            target.copy_(source)
