"""Training objectives: what the adversary maximises (`inner`) and what the classifier minimises (the call).

Every objective is a frozen dataclass of its own numbers. Clean and adversarial images go through
the network in one forward pass, so BatchNorm sees both in one batch.

Shapes: N images, C classes, D features. Per-image terms are averaged over the batch at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from aalp.errors import OptionError, unknown_name
from aalp.method import losses
from aalp.method.contributions import contributions
from aalp.method.guided_dropout import GuidedDropout, keep_mask
from aalp.method.pgd import AgainstClean, ImageClassifier, InnerLoss
from aalp.method.sample_weights import SampleWeights, classification_boost, conflict_cosine, sample_weights


@dataclass(frozen=True)
class LossParts:
    """A batch's loss.

    Attributes:
        total: scalar with gradient: what to call `backward` on.
        parts: batch means of the terms and diagnostics, scalars without gradient, by name.
        logits: (N, C) of the images the classifier was trained on last (adversarial if any), detached.
    """

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


class Objective(Protocol):
    """The call signature that all objectives share."""

    @property
    def inner(self) -> InnerLoss | None:
        """What the adversary maximises; None where there is no adversary."""

    def __call__(
        self,
        classifier: ImageClassifier,
        images: Tensor,
        adversarial: Tensor,
        labels: Tensor,
        *,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> LossParts:
        """The batch's loss.

        Args:
            classifier: an `aalp.Classifier` in training mode.
            images: (N, ...) clean images in [0, 1].
            adversarial: (N, ...) what `aalp.perturb` made of them.
            labels: (N,) integers in 0..C-1.
            progress: share of the training that is done, 0 to 1 (ramps).
            generator: source of randomness, on the images' device.
            mask: feature factors (N, D) to use instead of drawing them (AALP that attacked through its mask).
        """
        ...


@dataclass(frozen=True)
class Batch:
    """The arguments of an objective's call, see `Objective`."""

    classifier: ImageClassifier
    images: Tensor
    adversarial: Tensor
    labels: Tensor
    progress: float
    generator: torch.Generator | None
    mask: Tensor | None

    def both_logits(self) -> tuple[Tensor, Tensor]:
        """Logits (N, C) of the clean and of the adversarial images, in one forward pass."""
        clean_logits, adversarial_logits = self.classifier(torch.cat([self.images, self.adversarial])).chunk(2)
        return clean_logits, adversarial_logits


class _OnBatch:
    """The call that all objectives here share."""

    def loss(self, batch: Batch) -> LossParts:
        raise NotImplementedError

    def __call__(
        self,
        classifier: ImageClassifier,
        images: Tensor,
        adversarial: Tensor,
        labels: Tensor,
        *,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> LossParts:
        return self.loss(Batch(classifier, images, adversarial, labels, progress, generator, mask))


@dataclass(frozen=True)
class Standard(_OnBatch):
    """Ordinary training: CE(z, y)."""

    @property
    def inner(self) -> InnerLoss | None:
        return None

    def loss(self, batch: Batch) -> LossParts:
        logits = batch.classifier(batch.images)
        return _parts(losses.cross_entropy(logits, batch.labels), {}, logits)


@dataclass(frozen=True)
class AT(_OnBatch):
    """Adversarial training: CE(z', y) (arXiv 1706.06083)."""

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy

    def loss(self, batch: Batch) -> LossParts:
        logits = batch.classifier(batch.adversarial)
        return _parts(losses.cross_entropy(logits, batch.labels), {}, logits)


@dataclass(frozen=True)
class ALP(_OnBatch):
    """Adversarial logit pairing (arXiv 1803.06373).

    (1 - s) CE(z', y) + s CE(z, y) + lambda mean_c (z - z')^2 with s = clean_share, lambda = pairing_weight.
    """

    pairing_weight: float = 0.5
    clean_share: float = 0.5

    def __post_init__(self) -> None:
        _check_at_least_zero("pairing_weight", self.pairing_weight)
        _check_share("clean_share", self.clean_share)

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy

    def loss(self, batch: Batch) -> LossParts:
        clean_logits, adversarial_logits = batch.both_logits()
        classification = _shared_cross_entropy(self.clean_share, clean_logits, adversarial_logits, batch.labels)
        pairing = losses.logit_pairing(clean_logits, adversarial_logits)
        terms = {"classification": classification, "pairing": pairing}
        terms |= _conflict(clean_logits, adversarial_logits, batch.labels, pairing)
        return _parts(classification + self.pairing_weight * pairing, terms, adversarial_logits)


@dataclass(frozen=True)
class CLP(_OnBatch):
    """Clean logit pairing (arXiv 1803.06373): CE(z, y) + lambda mean_c (z(x1) - z(x2))^2 on random clean pairs."""

    pairing_weight: float = 0.5

    def __post_init__(self) -> None:
        _check_at_least_zero("pairing_weight", self.pairing_weight)

    @property
    def inner(self) -> InnerLoss | None:
        return None

    def loss(self, batch: Batch) -> LossParts:
        logits = batch.classifier(batch.images)
        partner = torch.randperm(len(logits), generator=batch.generator, device=logits.device)
        classification = losses.cross_entropy(logits, batch.labels)
        pairing = losses.logit_pairing(logits, logits[partner])
        terms = {"classification": classification, "pairing": pairing}
        return _parts(classification + self.pairing_weight * pairing, terms, logits)


@dataclass(frozen=True)
class TRADES(_OnBatch):
    """CE(z, y) + beta KL(p, p') (arXiv 1901.08573); the adversary maximises the KL term."""

    beta: float = 6.0

    def __post_init__(self) -> None:
        _check_at_least_zero("beta", self.beta)

    @property
    def inner(self) -> InnerLoss | None:
        return AgainstClean(losses.kl_divergence)

    def loss(self, batch: Batch) -> LossParts:
        clean_logits, adversarial_logits = batch.both_logits()
        classification = losses.cross_entropy(clean_logits, batch.labels)
        divergence = losses.kl_divergence(clean_logits, adversarial_logits)
        terms = {"classification": classification, "divergence": divergence}
        return _parts(classification + self.beta * divergence, terms, adversarial_logits)


@dataclass(frozen=True)
class MART(_OnBatch):
    """BCE(z', y) + beta (1 - p_y) KL(p, p') (ICLR 2020, code YisenWang/MART): misclassified images count more."""

    beta: float = 5.0

    def __post_init__(self) -> None:
        _check_at_least_zero("beta", self.beta)

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy

    def loss(self, batch: Batch) -> LossParts:
        clean_logits, adversarial_logits = batch.both_logits()
        classification = losses.boosted_cross_entropy(adversarial_logits, batch.labels)
        doubt = 1.0 - losses.cross_entropy(clean_logits, batch.labels).neg().exp()  # 1 - p_y
        divergence = doubt * losses.kl_divergence(clean_logits, adversarial_logits)
        terms = {"classification": classification, "divergence": divergence}
        return _parts(classification + self.beta * divergence, terms, adversarial_logits)


Distance = Literal["squared", "one-sided", "kl"]

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": losses.logit_pairing,
    "one-sided": lambda clean_logits, adversarial_logits: losses.logit_pairing(clean_logits.detach(), adversarial_logits),
    "kl": losses.kl_divergence,
}
"""How far apart the clean and the adversarial logits of a pair are, by name: (N, C), (N, C) -> (N,)."""


@dataclass(frozen=True)
class AALP(_OnBatch):
    """Adaptive adversarial logits pairing (arXiv 2005.11904; the variants of both modules are ours).

    ALP on features under one Guided Dropout mask a pair, with a weight w_i on each sample's pairing term:
    boost_i ((1 - s) CE(z', y) + s CE(z, y)) + lambda w_i d(z, z'), d the `distance`: `squared` mean_c (z - z')^2;
    `one-sided` the same with no gradient through the clean logits; `kl` KL(p, p'). With both modules None and
    the squared distance this is ALP.
    """

    pairing_weight: float = 0.5
    clean_share: float = 0.5
    distance: Distance = "squared"
    dropout: GuidedDropout | None = field(default_factory=GuidedDropout)
    weights: SampleWeights | None = field(default_factory=SampleWeights)

    def __post_init__(self) -> None:
        _check_at_least_zero("pairing_weight", self.pairing_weight)
        _check_share("clean_share", self.clean_share)
        if self.distance not in DISTANCES:
            raise OptionError(unknown_name("pairing distance", self.distance, DISTANCES))

    @property
    def inner(self) -> InnerLoss | None:
        return losses.cross_entropy

    def loss(self, batch: Batch) -> LossParts:
        classifier, labels, mask = batch.classifier, batch.labels, batch.mask
        features = classifier.features(torch.cat([batch.images, batch.adversarial]))
        if mask is None:
            mask = self.mask(classifier, features.detach()[len(labels) :], labels, batch.progress, batch.generator)
        pair_mask = None if mask is None else torch.cat([mask, mask])
        clean_logits, adversarial_logits = classifier.head(features, pair_mask).chunk(2)
        classification = _shared_cross_entropy(self.clean_share, clean_logits, adversarial_logits, batch.labels)
        pairing = DISTANCES[self.distance](clean_logits, adversarial_logits)
        spread: dict[str, Tensor] = {}
        if self.weights is not None:
            weights = sample_weights(self.weights, clean_logits, adversarial_logits, labels)
            classification = classification * classification_boost(self.weights, weights)
            pairing = weights * pairing
            spread = _weight_spread(weights)
        terms = {"classification": classification, "pairing": pairing, **spread}
        terms |= _conflict(clean_logits, adversarial_logits, labels, pairing)
        return _parts(classification + self.pairing_weight * pairing, terms, adversarial_logits)

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


def _parts(per_image: Tensor, terms: dict[str, Tensor], logits: Tensor) -> LossParts:
    means = {name: term.detach().mean() for name, term in terms.items()}
    return LossParts(per_image.mean(), means, logits.detach())


def _shared_cross_entropy(share: float, clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    clean = losses.cross_entropy(clean_logits, labels)
    adversarial = losses.cross_entropy(adversarial_logits, labels)
    return share * clean + (1.0 - share) * adversarial


@torch.no_grad()
def _conflict(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, pairing: Tensor) -> dict[str, Tensor]:
    """Observation 2 on this batch: how often the two losses pull apart, and who carries the pairing loss."""
    wrong = (clean_logits.argmax(1) != labels).float()
    return {
        "conflict_rate": (conflict_cosine(clean_logits, adversarial_logits, labels) < 0).float(),
        # The same at the clean logits, where the pairing pulls towards the adversarial ones.
        "conflict_rate_clean": (conflict_cosine(adversarial_logits, clean_logits, labels) < 0).float(),
        "misclassified_rate": wrong,
        "misclassified_share": wrong * pairing / pairing.mean().clamp_min(torch.finfo(torch.float32).tiny),
    }


def _weight_spread(weights: Tensor) -> dict[str, Tensor]:
    """How the sample weights of a batch are distributed: mean, 10th, 50th and 90th percentile."""
    low, median, high = weights.quantile(weights.new_tensor([0.1, 0.5, 0.9])).unbind()
    return {"weight_mean": weights.mean(), "weight_low": low, "weight_median": median, "weight_high": high}


def _check_at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise OptionError(f"{name} is {value}: it has to be a finite number of at least 0")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value}: it has to lie in [0, 1]")


OBJECTIVES: dict[str, tuple[Callable[..., Objective], frozenset[str]]] = {
    "standard": (Standard, frozenset()),
    "at": (AT, frozenset()),
    "alp": (ALP, frozenset({"pairing_weight", "clean_share"})),
    "clp": (CLP, frozenset({"pairing_weight"})),
    "trades": (TRADES, frozenset({"beta"})),
    "mart": (MART, frozenset({"beta"})),
    "aalp": (AALP, frozenset({"pairing_weight", "clean_share", "distance", "dropout", "weights"})),
    # The ablations are AALP itself with one module off.
    "aalp-no-dropout": (partial(AALP, dropout=None), frozenset({"pairing_weight", "clean_share", "distance", "weights"})),
    "aalp-no-weights": (partial(AALP, weights=None), frozenset({"pairing_weight", "clean_share", "distance", "dropout"})),
}
"""Objectives by the name the command line gives them, and the numbers each one takes."""
