"""Another adversary and other weights tried in AALP with its schedule: `aalp` with two more values of `method.distance`.

    python benchmarks/study/other_adversaries.py compare --config benchmarks/study/digits-adversaries.yaml \
        --run runs/digits-adversaries

whole   the adversary maximises all of the loss that its image is in, CE(z', y) + mean_c (z - z')^2, not the cross-entropy
        alone: pairing then sees the pairs that are furthest apart. (With AALP's schedule both terms have the weight t.)
gap     each image's pairing weight is what the attack takes from its confidence, p_y(x) - p_y(x') where that is above 0,
        mean 1: pairs with something to give to the adversarial side count most, wrong clean images nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from aalp.cli import main
from aalp.method import aalp as method
from aalp.method import losses, pgd
from aalp.method.objective_base import Batch, LossParts
from aalp.method.sample_weights import SampleWeights

Distance = Literal["squared", "one-sided", "kl", "whole", "gap"]

WHOLE = pgd.AgainstClean(losses.logit_pairing)
"""Told from every other inner loss by its identity."""


def gap_weights(_options: SampleWeights, clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """The weights (N,) of `gap`."""
    clean, adversarial = (losses.cross_entropy(z, labels).detach().neg().exp() for z in (clean_logits, adversarial_logits))
    lost = (clean - adversarial).clamp_min(0)
    return lost / lost.mean().clamp_min(1e-6)


def patch() -> None:
    """Put both into `aalp`, by the name of a distance."""
    patched: Any = method
    attacks: Any = pgd
    loss, ordinary, with_clean = method.AALP.loss, patched.sample_weights, attacks._with_clean

    def chosen(self: method.AALP, batch: Batch) -> LossParts:
        patched.sample_weights = gap_weights if str(self.distance) == "gap" else ordinary
        return loss(self, batch)

    def inner(self: method.AALP) -> pgd.InnerLoss:
        return WHOLE if str(self.distance) == "whole" else losses.cross_entropy

    def ascend(inner: pgd.AgainstClean, logits_of: Callable[[Tensor], Tensor], images: Tensor) -> pgd.PerImageLoss:
        distance: pgd.PerImageLoss = with_clean(inner, logits_of, images)
        if inner is not WHOLE:
            return distance
        return lambda logits, labels: losses.cross_entropy(logits, labels) + distance(logits, labels)

    patched.Distance = Distance  # what the command line takes
    patched.AALP.loss, patched.AALP.inner = chosen, property(inner)
    patched.DISTANCES |= dict.fromkeys(["whole", "gap"], losses.logit_pairing)
    attacks._with_clean = ascend


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
