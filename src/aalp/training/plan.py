"""What a training run is made of, before it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_fabric.loggers.logger import Logger

from aalp.data.split import Split
from aalp.distributed import ALONE, Ranks
from aalp.errors import DataError
from aalp.method.objective_base import Objective
from aalp.method.pgd import AttackOptions
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.store.run import RunDirectory
from aalp.training.devices import Strategy
from aalp.training.options import CheckpointOptions, TrainingOptions


@dataclass(frozen=True)
class Fit:
    """Everything a training run is made of.

    Attributes:
        classifier: trained in place; the averaged weights go to the run directory.
        run: where everything that is made lies.
        metadata: JSON that travels with the weights (how to build the model, classes, threat, ...).
        report: called after each epoch with its row of metrics.
        tick: called after each step with (step, steps in all, loss).
        warn: called with one line on what a user should know of and need not stop for.
        ranks: the processes that train together, each with a plan of its own that is the same; the main one alone writes
            files and calls report, tick and warn.
        loggers: where Fabric logs the metrics of each epoch; whoever opened them closes them (see `trackers`).
        strategy: what the processes share; fsdp leaves a share of weights, momentum and average on each between steps.
    """

    classifier: Classifier
    objective: Objective
    threat: Threat
    train: Split
    validation: Split
    run: RunDirectory
    metadata: Mapping[str, Any]
    attack: AttackOptions
    options: TrainingOptions
    checkpoint: CheckpointOptions = CheckpointOptions()
    seed: int = 0
    workers: int = 0
    report: Callable[[Mapping[str, Any]], None] = lambda row: None
    tick: Callable[[int, int, float], None] = lambda step, total, loss: None
    warn: Callable[[str], None] = lambda line: warnings.warn(line, stacklevel=2)
    ranks: Ranks = ALONE
    loggers: Sequence[Logger] = ()
    strategy: Strategy = "ddp"


def steps_per_epoch(train: Split, batch_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
        DataError: not even one.
    """
    if len(train) < batch_size:
        raise DataError(
            f"the training split has {len(train)} images, fewer than one batch of {batch_size}: "
            "give a smaller --training.batch_size"
        )
    return len(train) // batch_size
