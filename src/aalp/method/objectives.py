"""Training objectives: what the adversary maximises (`inner`) and what the classifier minimises (the call).

Every objective is a frozen dataclass of its own numbers; AALP is in `aalp.py`, what they share in `objective_base.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch

from aalp.errors import check_at_least_zero, check_share
from aalp.method import losses
from aalp.method.aalp import AALP
from aalp.method.objective_base import (
    Batch,
    LossParts,
    Objective,
    averaged,
    conflict,
    shared_cross_entropy,
)
from aalp.method.pgd import AgainstClean, InnerLoss


@dataclass(frozen=True)
class Standard(Objective):
    """Ordinary training: CE(z, y)."""

    @property
    def inner(self) -> InnerLoss | None:
        return None

    def loss(self, batch: Batch) -> LossParts:
        logits = batch.classifier(batch.images)
        return averaged(losses.cross_entropy(logits, batch.labels), {}, logits)


@dataclass(frozen=True)
class AT(Objective):
    """Adversarial training: CE(z', y) (arXiv 1706.06083)."""

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy

    def loss(self, batch: Batch) -> LossParts:
        logits = batch.classifier(batch.adversarial)
        return averaged(losses.cross_entropy(logits, batch.labels), {}, logits)


@dataclass(frozen=True)
class ALP(Objective):
    """Adversarial logit pairing (arXiv 1803.06373).

    (1 - s) CE(z', y) + s CE(z, y) + lambda mean_c (z - z')^2 with s = clean_share, lambda = pairing_weight.
    """

    pairing_weight: float = 0.5
    clean_share: float = 0.5

    def __post_init__(self) -> None:
        check_at_least_zero("pairing_weight", self.pairing_weight)
        check_share("clean_share", self.clean_share)

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy

    def loss(self, batch: Batch) -> LossParts:
        clean_logits, adversarial_logits = batch.both_logits()
        classification = shared_cross_entropy(self.clean_share, clean_logits, adversarial_logits, batch.labels)
        pairing = losses.logit_pairing(clean_logits, adversarial_logits)
        terms = {"classification": classification, "pairing": pairing}
        terms |= conflict(clean_logits, adversarial_logits, batch.labels, pairing)
        return averaged(classification + self.pairing_weight * pairing, terms, adversarial_logits)


@dataclass(frozen=True)
class CLP(Objective):
    """Clean logit pairing (arXiv 1803.06373): CE(z, y) + lambda mean_c (z(x1) - z(x2))^2 on random clean pairs."""

    pairing_weight: float = 0.5

    def __post_init__(self) -> None:
        check_at_least_zero("pairing_weight", self.pairing_weight)

    @property
    def inner(self) -> InnerLoss | None:
        return None

    def loss(self, batch: Batch) -> LossParts:
        logits = batch.classifier(batch.images)
        partner = torch.randperm(len(logits), generator=batch.generator, device=logits.device)
        classification = losses.cross_entropy(logits, batch.labels)
        pairing = losses.logit_pairing(logits, logits[partner])
        terms = {"classification": classification, "pairing": pairing}
        return averaged(classification + self.pairing_weight * pairing, terms, logits)


@dataclass(frozen=True)
class TRADES(Objective):
    """CE(z, y) + beta KL(p, p') (arXiv 1901.08573); the adversary maximises the KL term."""

    beta: float = 6.0

    def __post_init__(self) -> None:
        check_at_least_zero("beta", self.beta)

    @property
    def inner(self) -> InnerLoss | None:
        return AgainstClean(losses.kl_divergence)

    def loss(self, batch: Batch) -> LossParts:
        clean_logits, adversarial_logits = batch.both_logits()
        classification = losses.cross_entropy(clean_logits, batch.labels)
        divergence = losses.kl_divergence(clean_logits, adversarial_logits)
        terms = {"classification": classification, "divergence": divergence}
        return averaged(classification + self.beta * divergence, terms, adversarial_logits)


@dataclass(frozen=True)
class MART(Objective):
    """BCE(z', y) + beta (1 - p_y) KL(p, p') (ICLR 2020, code YisenWang/MART): misclassified images count more."""

    beta: float = 5.0

    def __post_init__(self) -> None:
        check_at_least_zero("beta", self.beta)

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy

    def loss(self, batch: Batch) -> LossParts:
        clean_logits, adversarial_logits = batch.both_logits()
        classification = losses.boosted_cross_entropy(adversarial_logits, batch.labels)
        doubt = 1.0 - losses.cross_entropy(clean_logits, batch.labels).neg().exp()  # 1 - p_y
        divergence = doubt * losses.kl_divergence(clean_logits, adversarial_logits)
        terms = {"classification": classification, "divergence": divergence}
        return averaged(classification + self.beta * divergence, terms, adversarial_logits)


def _unscheduled(pairing_weight: float = 0.5, clean_share: float = 0.5, **others: Any) -> AALP:
    """AALP with ALP's pairing weight and clean share throughout."""
    return AALP(
        pairing_weight=pairing_weight, pairing_ramp=0.0, clean_share=clean_share, final_clean_share=clean_share, **others
    )


AALP_NUMBERS = frozenset(field.name for field in fields(AALP))

OBJECTIVES: dict[str, tuple[Callable[..., Objective], frozenset[str]]] = {
    "standard": (Standard, frozenset()),
    "at": (AT, frozenset()),
    "alp": (ALP, frozenset({"pairing_weight", "clean_share"})),
    "clp": (CLP, frozenset({"pairing_weight"})),
    "trades": (TRADES, frozenset({"beta"})),
    "mart": (MART, frozenset({"beta"})),
    "aalp": (AALP, AALP_NUMBERS),
    # Another distance wants another weight: TRADES' own.
    "aalp-kl": (partial(AALP, distance="kl", pairing_weight=6.0), AALP_NUMBERS - {"distance"}),
    # The ablations are AALP itself with one part off.
    "aalp-no-dropout": (partial(AALP, dropout=None), AALP_NUMBERS - {"dropout"}),
    "aalp-no-weights": (partial(AALP, weights=None), AALP_NUMBERS - {"weights"}),
    "aalp-no-schedule": (_unscheduled, AALP_NUMBERS - {"pairing_ramp", "final_clean_share"}),
}
"""Objectives by the name the command line gives them, and the numbers each one takes."""
