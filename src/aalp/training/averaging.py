"""Exponential moving average of the weights: the averaged model is what is validated, evaluated and exported."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from aalp.method.pgd import in_evaluation_mode
from aalp.training.devices import batch_statistics
from aalp.training.sharded_weights import Weights

Module = TypeVar("Module", bound=nn.Module)


class Averager:
    """Keeps a shadow of a module: shadow = d * shadow + (1 - d) * weights, d = min(decay, (1 + t) / (10 + t)) at step t.

    The growing decay lets the average forget the random start early on (as in SEAT, arXiv 2203.09678). BatchNorm
    statistics are averaged like weights. All else is copied: counters, and what a network keeps as it is, where a mean
    of infinities, as in an attention mask, would be none.

    Args:
        module: the module to follow.
        decay: in [0, 1); 0 makes the shadow a copy of the weights.

    Attributes:
        shadow: the averaged module.
        weights: its parameters, as they lie on the ranks.
        moving: the module's trained weights and BatchNorm statistics, as they lie on the ranks, of which the average is.
    """

    def __init__(self, module: Module, decay: float) -> None:
        self.shadow = in_evaluation_mode(copy.deepcopy(module)).requires_grad_(False)
        self.decay = decay
        self.follow(Weights(module), Weights(self.shadow))

    def follow(self, weights: Weights, average: Weights) -> None:
        """Go on with the module's and the shadow's parameters as they now lie, shared out alike or not at all."""
        self.weights = average
        pairs = list(zip(weights.values(), average.values(), strict=True))
        statistics = {id(buffer) for buffer in batch_statistics(weights.module)}
        is_moving = [source.requires_grad or id(source) in statistics for source, _ in pairs]
        self._averaged = [pair for pair, moves in zip(pairs, is_moving, strict=True) if moves]
        self._copied = [pair for pair, moves in zip(pairs, is_moving, strict=True) if not moves]
        self.moving = [source for source, _ in self._averaged]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the shadow towards the weights after optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([t.data for _, t in self._averaged], [s.data for s, _ in self._averaged], 1.0 - decay)
        for source, target in self._copied:
            target.copy_(source)
