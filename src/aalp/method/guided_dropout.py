"""Guided Dropout: drop features that contribute little, so that the network learns to decide with few that contribute much.

The paper (arXiv 2005.11904) names the module and its aim; the score, the selection and the
schedule below are ours, chosen by measurement (see docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from aalp.errors import OptionError, check_share

Score = Literal["magnitude", "signed"]
Selection = Literal["rank", "mass"]


@dataclass(frozen=True)
class GuidedDropout:
    """How Guided Dropout picks and drops features."""

    score: Score = "magnitude"
    """What ranks a feature: |contribution|, or the signed contribution to the label (see docs on label leakage)."""

    selection: Selection = "rank"
    """Which features may be dropped: the lowest `fraction` by score, or all beyond the fewest that carry `mass` of it."""

    fraction: float = 0.8
    """Share of the features that may be dropped under `rank`, in [0, 1]."""

    mass: float = 0.9
    """Share of the (positive) score that the untouched features carry under `mass`, in [0, 1]."""

    probability: float = 0.5
    """Chance that a feature that may be dropped is dropped, in [0, 1), once the ramp is over."""

    ramp: float = 0.3
    """Share of the training over which the probability grows from 0, in [0, 1]: early contributions mean nothing yet."""

    attack: bool = False
    """Attack through the mask as well (one mask, fixed for all steps); off, the adversary sees the whole network."""

    def __post_init__(self) -> None:
        for name, choices in (("score", get_args(Score)), ("selection", get_args(Selection))):
            if getattr(self, name) not in choices:
                raise OptionError(f"dropout {name} is '{getattr(self, name)}': choose {' or '.join(choices)}")
        for name in ("fraction", "mass", "ramp"):
            check_share(f"dropout {name}", getattr(self, name))
        if not 0 <= self.probability < 1:
            raise OptionError(f"dropout probability is {self.probability}: it has to lie in [0, 1)")

    def probability_at(self, progress: float) -> float:
        """The drop probability when `progress` (0 to 1) of the training is done."""
        return self.probability * ramped(progress, self.ramp)


def ramped(progress: float, ramp: float) -> float:
    """How far something has grown that grows evenly from 0 to 1 over the first `ramp` (0 to 1) of the training."""
    return min(1.0, progress / ramp) if ramp > 0 else 1.0


def guided_set(contributions: Tensor, options: GuidedDropout) -> Tensor:
    """Which features (N, D, bool) lie outside the high-contribution ones and may be dropped.

    Under `rank` exactly floor(fraction * D) features of each image; ties go by position.
    """
    scores = contributions.abs() if options.score == "magnitude" else contributions
    order = scores.argsort(dim=1, descending=True, stable=True)
    if options.selection == "rank":
        # 0.29 * 100 is 28.999... in floating point, and means 29.
        kept = scores.shape[1] - int(options.fraction * scores.shape[1] + 1e-9)
        beyond = torch.arange(scores.shape[1], device=scores.device).expand_as(order) >= kept
    else:
        ordered = scores.gather(1, order).clamp_min(0)
        carried_before = ordered.cumsum(1) - ordered
        beyond = carried_before >= options.mass * ordered.sum(1, keepdim=True) * (1 - 1e-6)
    return torch.zeros_like(beyond).scatter(1, order, beyond)


def keep_mask(
    contributions: Tensor,
    options: GuidedDropout,
    progress: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The factor (N, D) for each feature: 1 outside the guided set; inside it 0 with probability p, else 1 / (1 - p).

    Args:
        contributions: (N, D), of the adversarial features to the label; no gradient flows through them.
        progress: share of the training that is done, 0 to 1, for the ramp of p.
        generator: source of the drops, on the device of the contributions.
    """
    contributions = contributions.detach().float()
    probability = options.probability_at(progress)
    chance = torch.rand(contributions.shape, generator=generator, device=contributions.device)
    survivors = (chance >= probability).to(contributions.dtype) / (1.0 - probability)
    return torch.where(guided_set(contributions, options), survivors, 1.0)
