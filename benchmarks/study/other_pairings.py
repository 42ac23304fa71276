"""Schedules, pairs and weights tried in AALP: `aalp` with more values of `method.distance`, each a change in one place.

    python benchmarks/study/other_pairings.py compare --config benchmarks/study/digits-pairings.yaml --run runs/digits-pairings

and so for digits-falling, digits-late and cifar10-falling. What was kept is AALP's schedule now; `aalp` here is without it.

late           the pairing weight grows from 0 to twice its value over the training.
early          it falls from twice its value to 0.
falling        the clean share s falls from 2 s to 0: first learn the task, then to hold it.
rising         it grows from 0 to 2 s.
falling-late   both: clean images alone first, adversarial ones under strong pairing at the end.
across         the pair is the clean image with all its features and the adversarial one under the mask, and each is classified
               so: what Guided Dropout leaves out has to be made up for (consistency under dropout, arXiv 2106.14448).
margins        what is paired is the margin z_y - max_k z_k that decides, (m - m')^2 / C, not every logit.
adversarial    each image's pairing weight is its confidence under attack, p_y(x'), mean 1.
hard           it is 1 - p_y(x'), mean 1: images about to be lost are held most.
late-hard      both, and falling-late-hard all three.
boosted        the adversarial cross-entropy also pushes down the strongest wrong class, as MART's does (ICLR 2020).
"""

from __future__ import annotations

import sys
from typing import Any, Literal, get_args

import before_schedule
import torch
from torch import Tensor

from aalp.cli import main
from aalp.method import aalp as method
from aalp.method import losses
from aalp.method.objective_base import Batch, LossParts, averaged, conflict
from aalp.method.sample_weights import sample_weights

Distance = Literal[
    "squared",
    "one-sided",
    "kl",
    "late",
    "early",
    "falling",
    "rising",
    "falling-late",
    "across",
    "margins",
    "adversarial",
    "hard",
    "boosted",
    "late-hard",
    "falling-late-hard",
]

KINDS = get_args(Distance)[3:]


def both_logits(self: method.AALP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Clean and adversarial logits (N, C) under one Guided Dropout mask, or the adversarial ones alone under it."""
    features = batch.classifier.features(torch.cat([batch.images, batch.adversarial]))
    mask = self.mask(batch.classifier, features.detach()[len(batch.labels) :], batch.labels, batch.progress, batch.generator)
    if mask is not None:
        clean_mask = torch.ones_like(mask) if str(self.distance) == "across" else mask
        mask = torch.cat([clean_mask, mask])
    clean, adversarial = batch.classifier.head(features, mask).chunk(2)
    return clean, adversarial


def paired(kind: str, clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """The pairing term (N,) before its weight."""
    if kind == "margins":
        change = losses.margin(clean, labels) - losses.margin(adversarial, labels)
        return change.square() / clean.shape[1]
    return losses.logit_pairing(clean, adversarial)


def weighted(self: method.AALP, clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """The weights (N,) of the pairing terms."""
    kind = str(self.distance)
    if kind != "adversarial" and "hard" not in kind:
        assert self.weights is not None, "these rows keep AALP's sample weights"
        return sample_weights(self.weights, clean, adversarial, labels)
    confidence = losses.cross_entropy(adversarial, labels).detach().neg().exp()
    weight = confidence if kind == "adversarial" else 1 - confidence
    return weight / weight.mean().clamp_min(1e-6)


def changed_loss(self: method.AALP, batch: Batch) -> LossParts:
    """AALP's loss with one thing changed, see the top of this file."""
    kind, progress, labels = str(self.distance), batch.progress, batch.labels
    clean, adversarial = both_logits(self, batch)
    share = self.clean_share * {"rising": 2 * progress}.get(kind, 2 * (1 - progress) if "falling" in kind else 1)
    strength = self.pairing_weight * {"early": 2 * (1 - progress)}.get(kind, 2 * progress if "late" in kind else 1)
    on_adversarial = (losses.boosted_cross_entropy if kind == "boosted" else losses.cross_entropy)(adversarial, labels)
    classification = share * losses.cross_entropy(clean, labels) + (1 - share) * on_adversarial
    pairing = weighted(self, clean, adversarial, labels) * paired(kind, clean, adversarial, labels)
    terms = {"classification": classification, "pairing": pairing}
    terms |= conflict(clean, adversarial, labels, pairing)
    return averaged(classification + strength * pairing, terms, adversarial)


def patch() -> None:
    """Put the changes into `aalp`, by the name of a distance."""
    before_schedule.patch()
    loss = method.AALP.loss

    def chosen(self: method.AALP, batch: Batch) -> LossParts:
        return (changed_loss if self.distance in KINDS else loss)(self, batch)

    patched: Any = method
    patched.Distance = Distance  # what the command line takes
    patched.AALP.loss = chosen
    patched.DISTANCES |= dict.fromkeys(KINDS, losses.logit_pairing)


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
