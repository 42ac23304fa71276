"""What a training run would cost: probed apart from `dry_run`, since the training loop takes seconds to import."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from aalp.commands.dry_run import PROBE_STEPS, memory
from aalp.data.split import ResidentSplit
from aalp.errors import InterruptedRunError
from aalp.store.run import RunDirectory
from aalp.training.loop import fit
from aalp.training.plan import Fit, steps_per_epoch

PROBE_VALIDATION = 500
"""Validation images in the probe: enough that what ends an epoch besides, as writing weights, hardly counts among them."""


def training_cost(plan: Fit, done: int = 0) -> dict[str, Any]:
    """What a training run would cost, from ten steps of the real loop and one validation, in a folder that is removed.

    Args:
        done: steps that a resumed run has behind it.
    """
    size, per_epoch = plan.options.batch_size, steps_per_epoch(plan.train, plan.options.batch_size)
    steps, checked = min(PROBE_STEPS, per_epoch), min(PROBE_VALIDATION, len(plan.validation))
    reading = _reading(plan, size)
    times: list[float] = []

    def note(*_: object) -> None:
        times.append(time.perf_counter())

    # The loop's own options but for the learning rate, so that a schedule pressed into ten steps cannot diverge.
    # An epoch of one step is passed twice: the first step comes before the clock.
    options = replace(plan.options, epochs=1 if steps > 1 else 2, lr=1e-9)
    with tempfile.TemporaryDirectory() as folder:
        probe = replace(
            plan,
            run=RunDirectory(Path(folder)),
            train=plan.train.subset(torch.arange(steps * size)),
            validation=plan.validation.subset(torch.arange(checked)),
            options=options,
            tick=note,
            report=note,
        )
        try:
            fit(probe)
        except InterruptedRunError as error:  # there is no run to go on with
            raise KeyboardInterrupt from error
    laps = [after - before for before, after in pairwise(times)]
    # Workers read the first batches ahead: of ten steps most find theirs ready, however long reading takes.
    step = max(reading, statistics.median(laps[:-1] if steps > 1 else laps[1:2]))
    validation = laps[-1] * len(plan.validation) / max(1, checked)
    total = per_epoch * plan.options.epochs
    epochs = plan.options.epochs - done // per_epoch
    seconds = (total - done) * step + epochs * validation
    return {
        "steps": total - done,
        "step_seconds": step,
        "validations": epochs,
        "validation_seconds": validation,
        "minutes": seconds / 60,
        **memory(),
    }


def _reading(plan: Fit, batch_size: int) -> float:
    """Seconds between two batches from all workers together, which read a batch each; 0 where nobody reads ahead."""
    if isinstance(plan.train, ResidentSplit) or plan.workers == 0:
        return 0.0
    start = time.perf_counter()
    plan.train.read(torch.arange(batch_size))
    return (time.perf_counter() - start) / min(plan.workers, os.cpu_count() or 1)
