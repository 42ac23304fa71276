"""Learning rate schedules, as functions of the share of the training that is done."""

from __future__ import annotations

from collections.abc import Sequence

from aalp.training.options import TrainingOptions


def one_cycle(progress: float, warmup: float) -> float:
    """Factor of the peak learning rate: up linearly from 0 over `warmup`, then down linearly to 0 (arXiv 1708.07120)."""
    if progress < warmup:
        return progress / warmup
    return (1.0 - progress) / (1.0 - warmup) if warmup < 1 else 1.0


def step_down(progress: float, milestones: Sequence[float]) -> float:
    """Factor of the learning rate: divided by 10 at each milestone that is reached."""
    return float(0.1 ** sum(progress >= milestone for milestone in milestones))


def rate_factor(options: TrainingOptions, progress: float, steps: int) -> float:
    """Factor of the peak learning rate by the schedule of the options, in a training of so many steps."""
    if options.schedule == "step":
        return step_down(progress, options.milestones)
    # The very first step of a rise from 0 would not move: it gets one step's worth.
    return max(one_cycle(progress, options.warmup), 1 / steps)
