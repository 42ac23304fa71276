"""What an evaluation came to: each attack's result, and the worst case of each image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aalp.method.threat import Threat


@dataclass(frozen=True)
class AttackResult:
    """What one attack did.

    Attributes:
        standing: (N,) bool: classified right clean and under this attack. For AutoAttack: under all its parts so far.
        attacked: how many images it was run on.
        seconds: wall time; with several processes, of all of them together.
        settings: what it ran with.
        outside: on how many images it left the ball or [0, 1], which counts as a failed attempt (attacks not ours).
    """

    name: str
    standing: Tensor
    attacked: int
    seconds: float
    settings: dict[str, float | int | str]
    outside: int = 0

    @property
    def accuracy(self) -> float:
        return float(self.standing.double().mean())


@dataclass
class Evaluation:
    """Accuracy of a classifier, clean and under attack.

    Attributes:
        indices: (N,) positions of the images in their split.
        labels, predictions: (N,) true and clean predicted classes; -1 where the logits are not finite.
        results: one for each attack that was asked for, AutoAttack as a whole with its parts in `parts`.
        parts: the parts of AutoAttack, in order.
        broken_by: (N,) index into `names` of the first attack that broke the image: 0 nothing, 1 clean.
        measures: per-image measurements by name, (N,) each (see `robustness.py`); NaN where an image was not measured.
        measured_on: name of the attack whose images the adversarial measurements are of, if any.
    """

    indices: Tensor
    labels: Tensor
    predictions: Tensor
    threat: Threat
    seed: int
    results: list[AttackResult] = field(default_factory=list)
    parts: list[AttackResult] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: ["", "clean"])
    broken_by: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    measures: dict[str, Tensor] = field(default_factory=dict)
    measured_on: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def clean_accuracy(self) -> float:
        return float((self.predictions == self.labels).double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of images that are right clean and under every attack that ran; NaN where none ran."""
        return float((self.broken_by == 0).double().mean()) if self.results else math.nan
