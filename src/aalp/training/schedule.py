"""Learning rate schedules, as functions of the share of the training that is done."""

from __future__ import annotations

from collections.abc import Sequence


def one_cycle(progress: float, warmup: float) -> float:
    """Factor of the peak learning rate: up linearly from 0 over `warmup`, then down linearly to 0 (arXiv 1708.07120)."""
    if progress < warmup:
        return progress / warmup
    return (1.0 - progress) / (1.0 - warmup) if warmup < 1 else 1.0


def step_down(progress: float, milestones: Sequence[float]) -> float:
    """Factor of the learning rate: divided by 10 at each milestone that is reached."""
    return float(0.1 ** sum(progress >= milestone for milestone in milestones))
