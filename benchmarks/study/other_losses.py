"""Losses tried in place of AALP's and not kept: `aalp` with ten more values of `method.distance`.

    python benchmarks/study/other_losses.py compare --config benchmarks/study/digits-targets.yaml --run runs/digits-targets
    python benchmarks/study/other_losses.py compare --config benchmarks/study/cifar10-losses.yaml --run runs/cifar10-losses
    python benchmarks/study/other_losses.py compare --config benchmarks/study/digits-losses.yaml --run runs/digits-losses

average-squared, average-kl   the adversarial logits are paired with those that the averaged weights (EMA) give the clean
                              image, in evaluation mode, without gradient: a target that does not run away, as one-sided
                              pairing does, and knows more than the label (the average as a teacher: arXiv 2306.12118).
probabilities                 squared distance of the softmax outputs instead of the logits (arXiv 2202.10103).
share                         each image has a clean share of its own, 2 s (1 - p_y(x)): what is wrong on the clean image is
                              learned there, what is right is learned on the adversarial one.
gce                           the adversarial cross-entropy weighted by sqrt(p_y(x')), mean 1: images out of reach count less
                              (the gradient of the generalised cross-entropy, arXiv 1805.07836).
apart                         clean and adversarial images pass in batches of their own, so BatchNorm never mixes them.
margin                        the adversary maximises the margin max_k z'_k - z'_y (arXiv 1608.04644), not the cross-entropy.
contributions                 what each feature adds to each logit is paired, mean_c sum_k (W_ck h_k - W_ck h'_k)^2, so that
                              features cannot change and cancel.
shrinking                     Guided Dropout by mass: the features that stay carry all of the score at first, 70 % at the end.
smooth                        label smoothing of 0.1 in both cross-entropies (arXiv 1512.00567).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, Literal

import before_schedule
import torch
from torch import Tensor

from aalp.cli import main
from aalp.method import aalp as method
from aalp.method import losses
from aalp.method.objective_base import Batch, LossParts, averaged, conflict, shared_cross_entropy
from aalp.method.sample_weights import sample_weights
from aalp.training.averaging import Averager

Distance = Literal[
    "squared",
    "one-sided",
    "kl",
    "probabilities",
    "average-squared",
    "average-kl",
    "share",
    "gce",
    "apart",
    "margin",
    "contributions",
    "shrinking",
    "smooth",
]

shadows: list[Any] = []
"""The averaged networks of this process, the newest last."""


def probabilities(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Squared distance (N,) of the softmax outputs."""
    return (logits.float().softmax(1) - other_logits.float().softmax(1)).square().sum(1)


def both_features(self: method.AALP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Clean and adversarial features (N, D) under one Guided Dropout mask."""
    pair = [batch.images, batch.adversarial]
    if str(self.distance) == "apart":
        clean, adversarial = (batch.classifier.features(images) for images in pair)
    else:
        clean, adversarial = batch.classifier.features(torch.cat(pair)).chunk(2)
    if str(self.distance) == "shrinking" and self.dropout is not None:
        self = replace(self, dropout=replace(self.dropout, selection="mass", mass=1 - 0.3 * batch.progress))
    mask = self.mask(batch.classifier, adversarial.detach(), batch.labels, batch.progress, batch.generator)
    return (clean, adversarial) if mask is None else (clean * mask.to(clean.dtype), adversarial * mask.to(clean.dtype))


def both_logits(self: method.AALP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Clean and adversarial logits (N, C) under one Guided Dropout mask."""
    clean, adversarial = batch.classifier.head(torch.cat(both_features(self, batch))).chunk(2)
    return clean, adversarial


def paired_with_average(self: method.AALP, batch: Batch) -> LossParts:
    """AALP's loss with the averaged network's logits as the clean ones of the pair."""
    with torch.no_grad():
        target = shadows[-1](batch.images).float()
    clean, adversarial = both_logits(self, batch)
    classification = shared_cross_entropy(self.clean_share, clean, adversarial, batch.labels)
    pairing = method.DISTANCES[self.distance](target, adversarial)
    if self.weights is not None:
        pairing = sample_weights(self.weights, target, adversarial, batch.labels) * pairing
    terms = {"classification": classification, "pairing": pairing}
    return averaged(classification + self.pairing_weight * pairing, terms, adversarial)


def classified_otherwise(self: method.AALP, batch: Batch) -> LossParts:
    """AALP's loss with another classification term, or the same on other logits or another adversary's images."""
    features = both_features(self, batch)
    clean, adversarial = batch.classifier.head(torch.cat(features)).chunk(2)
    on_clean, on_adversarial = (losses.cross_entropy(logits, batch.labels) for logits in (clean, adversarial))
    if str(self.distance) == "smooth":
        on_clean, on_adversarial = (smoothed(loss, z) for loss, z in ((on_clean, clean), (on_adversarial, adversarial)))
    share: float | Tensor = self.clean_share
    if str(self.distance) == "share":
        share = (2 * self.clean_share * (1 - on_clean.detach().neg().exp())).clamp(0, 1)
    if str(self.distance) == "gce":
        reach = on_adversarial.detach().neg().exp().sqrt()
        on_adversarial = on_adversarial * reach / reach.mean()
    classification = share * on_clean + (1 - share) * on_adversarial
    pairing = losses.logit_pairing(clean, adversarial)
    if str(self.distance) == "contributions":
        change = (features[0].float() - features[1].float()).square()
        pairing = change @ batch.classifier.head_weight.float().square().mean(0)
    if self.weights is not None:
        pairing = sample_weights(self.weights, clean, adversarial, batch.labels) * pairing
    terms = {"classification": classification, "pairing": pairing}
    terms |= conflict(clean, adversarial, batch.labels, pairing)
    return averaged(classification + self.pairing_weight * pairing, terms, adversarial)


def smoothed(cross_entropy: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy (N,) with a tenth of the label spread over all classes."""
    return 0.9 * cross_entropy - 0.1 * logits.float().log_softmax(1).mean(1)


def patch() -> None:
    """Put the losses into `aalp`, and note the averaged network of each training."""
    before_schedule.patch()
    begin, loss = Averager.__init__, method.AALP.loss

    def noting(self: Averager, module: Any, decay: float) -> None:
        begin(self, module, decay)
        shadows.append(self.shadow)

    def chosen(self: method.AALP, batch: Batch) -> LossParts:
        if self.distance.startswith("average-"):
            return paired_with_average(self, batch)
        return (loss if self.distance in ("squared", "one-sided", "kl", "probabilities") else classified_otherwise)(self, batch)

    patched: Any = method
    patched.Distance = Distance  # what the command line takes
    patched.AALP.loss = chosen
    patched.AALP.inner = property(lambda self: losses.margin if str(self.distance) == "margin" else losses.cross_entropy)
    patched.DISTANCES |= {
        "probabilities": probabilities,
        "average-squared": losses.logit_pairing,
        "average-kl": losses.kl_divergence,
        **dict.fromkeys(("share", "gce", "apart", "margin", "contributions", "shrinking", "smooth"), losses.logit_pairing),
    }
    changed: Any = Averager
    changed.__init__ = noting


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
