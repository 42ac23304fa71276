"""Options of a training run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from aalp.data.augment import Augmentation
from aalp.errors import OptionError, check_share


@dataclass(frozen=True)
class TrainingOptions:
    """How a classifier is trained."""

    epochs: int = 30
    """Passes over the training images."""

    batch_size: int = 128
    """Images a step; an incomplete last batch is left out of the epoch."""

    lr: float = 0.1
    """Peak learning rate of SGD with Nesterov momentum 0.9."""

    weight_decay: float = 5e-4
    """L2 penalty on the weights."""

    schedule: Literal["one-cycle", "step"] = "one-cycle"
    """one-cycle: up over `warmup`, down to 0 at the end. step: divided by 10 at each of `milestones`."""

    warmup: float = 0.3
    """Share of the training over which one-cycle rises."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the training at which the step schedule drops."""

    ema: float = 0.999
    """Decay of the average of the weights, which is what is evaluated; 0 uses the weights as they are."""

    clip: float | None = None
    """Largest norm of the gradient; longer ones are scaled down."""

    awp: float = 0.0
    """Relative size gamma of adversarial weight perturbation (0.005 in its paper); 0 is off."""

    awp_start: float = 0.1
    """Share of the training after which weight perturbation begins."""

    augment: Augmentation = "none"
    """Random shifts (crop), mirroring (flip), both, or none; resized-crop, for photographs, cuts out 8 to 100 % of the area."""

    balance: Literal["none", "classes"] = "none"
    """classes: draw every class equally often in each epoch, repeating images of rare ones; the losses weigh nothing else."""

    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bf16 mixed precision where the hardware computes it, float32 elsewhere."""

    validation_steps: int = 10
    """Steps of the PGD attack on the validation images after each epoch, which selects the best weights."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validation_steps"):
            if getattr(self, name) < 1:
                raise OptionError(f"training {name} is {getattr(self, name)}: it has to be at least 1")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OptionError(f"training {name} is {value}: it has to be a positive number")
        for name in ("weight_decay", "awp"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise OptionError(f"training {name} is {getattr(self, name)}: it has to be at least 0")
        for name in ("warmup", "awp_start"):
            check_share(f"training {name}", getattr(self, name))
        if not 0 <= self.ema < 1:
            raise OptionError(f"training ema is {self.ema}: it has to lie in [0, 1)")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise OptionError(f"training milestones is {list(self.milestones)}: rising shares between 0 and 1 are needed")


SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class CheckpointOptions:
    """When the state of a training run is saved, and how many states are kept. They change nothing in the result."""

    every: str = "10min"
    """Save this often in the course of an epoch (30s, 10min, 2h, 1d); the end of an epoch is always saved."""

    keep: int = 2
    """States kept, the newest ones; where the newest is damaged, the one before it is resumed from."""

    def __post_init__(self) -> None:
        self.seconds()
        if self.keep < 1:
            raise OptionError(f"checkpoint keep is {self.keep}: it has to be at least 1")

    def seconds(self) -> float:
        """`every` in seconds.

        Raises:
            OptionError: it is no duration.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d)", self.every)
        if not found or float(found[1]) == 0:
            raise OptionError(f"checkpoint every is '{self.every}': give a number with s, min, h or d, such as 30s or 10min")
        return float(found[1]) * SECONDS[found[2]]
