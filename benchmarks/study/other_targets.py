"""Pairing with other targets than the clean logits of the same network, tried and not kept: `aalp` with three more distances.

    python benchmarks/study/other_targets.py compare --config benchmarks/study/digits-targets.yaml --run runs/digits-targets

average-squared, average-kl   the adversarial logits are paired with those that the averaged weights (EMA) give the clean
                              image, in evaluation mode, without gradient: a target that does not run away, as one-sided
                              pairing does, and knows more than the label (the average as a teacher: arXiv 2306.12118).
probabilities                 squared distance of the softmax outputs instead of the logits (arXiv 2202.10103).
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch
from torch import Tensor

from aalp.cli import main
from aalp.method import aalp as method
from aalp.method import losses
from aalp.method.objective_base import Batch, LossParts, averaged, shared_cross_entropy
from aalp.method.sample_weights import sample_weights
from aalp.training.averaging import Averager

Distance = Literal["squared", "one-sided", "kl", "probabilities", "average-squared", "average-kl"]

shadows: list[Any] = []
"""The averaged networks of this process, the newest last."""


def probabilities(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Squared distance (N,) of the softmax outputs."""
    return (logits.float().softmax(1) - other_logits.float().softmax(1)).square().sum(1)


def paired_with_average(self: method.AALP, batch: Batch) -> LossParts:
    """AALP's loss with the averaged network's logits as the clean ones of the pair."""
    images, adversarial, count = batch.images, batch.adversarial, len(batch.labels)
    with torch.no_grad():
        target = shadows[-1](images).float()
    features = batch.classifier.features(torch.cat([images, adversarial]))
    mask = self.mask(batch.classifier, features.detach()[count:], batch.labels, batch.progress, batch.generator)
    pair_mask = None if mask is None else torch.cat([mask, mask])
    clean_logits, adversarial_logits = batch.classifier.head(features, pair_mask).chunk(2)
    classification = shared_cross_entropy(self.clean_share, clean_logits, adversarial_logits, batch.labels)
    pairing = method.DISTANCES[self.distance](target, adversarial_logits)
    if self.weights is not None:
        pairing = sample_weights(self.weights, target, adversarial_logits, batch.labels) * pairing
    terms = {"classification": classification, "pairing": pairing}
    return averaged(classification + self.pairing_weight * pairing, terms, adversarial_logits)


def patch() -> None:
    """Put the three distances into `aalp`, and note the averaged network of each training."""
    begin, loss = Averager.__init__, method.AALP.loss

    def noting(self: Averager, module: Any, decay: float) -> None:
        begin(self, module, decay)
        shadows.append(self.shadow)

    def chosen(self: method.AALP, batch: Batch) -> LossParts:
        return (paired_with_average if self.distance.startswith("average-") else loss)(self, batch)

    patched: Any = method
    patched.Distance = Distance  # what the command line takes
    patched.AALP.loss = chosen
    patched.DISTANCES |= {
        "probabilities": probabilities,
        "average-squared": losses.logit_pairing,
        "average-kl": losses.kl_divergence,
    }
    changed: Any = Averager
    changed.__init__ = noting


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
