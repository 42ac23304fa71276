"""AALP itself: logit pairing under Guided Dropout and sample weights (arXiv 2005.11904)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from aalp.errors import ModelError, OptionError, check_at_least_zero, check_share, unknown_name
from aalp.method import losses
from aalp.method.contributions import contributions
from aalp.method.guided_dropout import GuidedDropout, keep_mask, ramped
from aalp.method.objective_base import (
    Batch,
    LossParts,
    Objective,
    averaged,
    conflict,
    shared_cross_entropy,
)
from aalp.method.pgd import AgainstClean, ImageClassifier, InnerLoss
from aalp.method.sample_weights import SampleWeights, classification_boost, sample_weights

Distance = Literal["squared", "one-sided", "kl"]

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": losses.logit_pairing,
    "one-sided": lambda clean_logits, adversarial_logits: losses.logit_pairing(clean_logits.detach(), adversarial_logits),
    "kl": losses.kl_divergence,
}
"""How far apart the clean and the adversarial logits of a pair are, by name: (N, C), (N, C) -> (N,)."""

Adversary = Literal["cross-entropy", "pairing"]
"""What the attack in training maximises: CE(z', y), or the distance that the pairing minimises."""


@dataclass(frozen=True)
class AALP(Objective):
    """Adaptive adversarial logits pairing (arXiv 2005.11904; the variants of both modules are ours).

    ALP on features under one Guided Dropout mask a pair, with a weight w_i on each sample's pairing term:
    boost_i ((1 - s) CE(z', y) + s CE(z, y)) + lambda w_i d(z, z'), d the `distance`: `squared` mean_c (z - z')^2;
    `one-sided` the same with no gradient through the clean logits; `kl` KL(p, p'). While the training progresses s goes
    from `clean_share` to `final_clean_share`, and lambda grows from 0 to `pairing_weight`: the task is learned first,
    then how to hold it. The `adversary` maximises CE(z', y), or d as TRADES' does (arXiv 1901.08573). With both modules
    None, the squared distance, no ramp and equal shares this is ALP.
    """

    pairing_weight: float = 1.0
    """lambda at the end of its ramp, >= 0."""

    pairing_ramp: float = 1.0
    """Share of the training over which lambda grows from 0, in [0, 1]; 0: it is `pairing_weight` throughout."""

    clean_share: float = 1.0
    """s, the share of the clean cross-entropy, at the beginning, in [0, 1]."""

    final_clean_share: float = 0.0
    """s at the end, in [0, 1]; in between it changes evenly."""

    distance: Distance = "squared"
    adversary: Adversary = "cross-entropy"
    dropout: GuidedDropout | None = field(default_factory=GuidedDropout)
    weights: SampleWeights | None = field(default_factory=SampleWeights)

    def __post_init__(self) -> None:
        check_at_least_zero("pairing_weight", self.pairing_weight)
        for name in ("pairing_ramp", "clean_share", "final_clean_share"):
            check_share(name, getattr(self, name))
        if self.distance not in DISTANCES:
            raise OptionError(unknown_name("pairing distance", self.distance, DISTANCES))
        if self.adversary not in get_args(Adversary):
            raise OptionError(unknown_name("adversary", self.adversary, get_args(Adversary)))

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy if self.adversary == "cross-entropy" else AgainstClean(DISTANCES[self.distance])

    def pairing_weight_at(self, progress: float) -> float:
        """lambda when `progress` (0 to 1) of the training is done."""
        return self.pairing_weight * ramped(progress, self.pairing_ramp)

    def clean_share_at(self, progress: float) -> float:
        """The clean share s when `progress` (0 to 1) of the training is done."""
        return self.clean_share + progress * (self.final_clean_share - self.clean_share)

    def loss(self, batch: Batch) -> LossParts:
        classifier, labels, mask = batch.classifier, batch.labels, batch.mask
        if not hasattr(classifier, "head_weight"):
            kind = type(classifier).__name__
            raise ModelError(f"the classifier is a {kind}: AALP looks at features, give it an aalp.Classifier")
        features = classifier.features(torch.cat([batch.images, batch.adversarial]))
        if mask is None:
            mask = self.mask(classifier, features.detach()[len(labels) :], labels, batch.progress, batch.generator)
        pair_mask = None if mask is None else torch.cat([mask, mask])
        clean_logits, adversarial_logits = classifier.head(features, pair_mask).chunk(2)
        share = self.clean_share_at(batch.progress)
        classification = shared_cross_entropy(share, clean_logits, adversarial_logits, labels)
        pairing = DISTANCES[self.distance](clean_logits, adversarial_logits)
        spread: dict[str, Tensor] = {}
        if self.weights is not None:
            weights = sample_weights(self.weights, clean_logits, adversarial_logits, labels)
            classification = classification * classification_boost(self.weights, weights)
            pairing = weights * pairing
            spread = _weight_spread(weights)
        terms = {"classification": classification, "pairing": pairing, **spread}
        terms |= conflict(clean_logits, adversarial_logits, labels, pairing)
        return averaged(classification + self.pairing_weight_at(batch.progress) * pairing, terms, adversarial_logits)

    def mask(
        self,
        classifier: ImageClassifier,
        features: Tensor,
        labels: Tensor,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor | None:
        """A Guided Dropout mask (N, D) drawn for features (N, D), or None while nothing is dropped."""
        if self.dropout is None or self.dropout.probability_at(progress) == 0:
            return None
        weight = classifier.head_weight.detach()
        return keep_mask(contributions(features.float(), weight, labels), self.dropout, progress, generator)


def _weight_spread(weights: Tensor) -> dict[str, Tensor]:
    """How the sample weights of a batch are distributed: mean, 10th, 50th and 90th percentile."""
    low, median, high = weights.quantile(weights.new_tensor([0.1, 0.5, 0.9])).unbind()
    return {"weight_mean": weights.mean(), "weight_low": low, "weight_median": median, "weight_high": high}
