"""Options of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aalp.data.augment import Augmentation
from aalp.errors import OptionError


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
    """Random shifts (crop), mirroring (flip), both, or none."""

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
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"training {name} is {getattr(self, name)}: it has to lie in [0, 1]")
        if not 0 <= self.ema < 1:
            raise OptionError(f"training ema is {self.ema}: it has to lie in [0, 1)")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise OptionError(f"training milestones is {list(self.milestones)}: rising shares between 0 and 1 are needed")
