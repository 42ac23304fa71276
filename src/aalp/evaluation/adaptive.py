"""Attacks made for AALP: they know that logits are paired and that the decision hangs on few high-contribution features.

Tramer et al. (arXiv 2002.08347) ask for an attack that knows the defence; these are ours. Each runs on the deployed
network, or through a Guided Dropout mask (one draw, fixed for all steps), as the network was trained. Whatever an attack
ascends on, it hands back the iterate that the deployed network gets most wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aalp.evaluation.model_gates import WithGradient
from aalp.method.contributions import contributions
from aalp.method.guided_dropout import GuidedDropout, guided_set, keep_mask
from aalp.method.losses import logit_pairing, margin
from aalp.method.pgd import ImageClassifier, PerImageLoss, View, perturb
from aalp.method.threat import Threat

HIGH = GuidedDropout(score="signed", selection="mass", mass=0.9)
"""High-contribution features: the fewest that carry 90 % of the positive contributions to the label."""

MASK = GuidedDropout()


def pairing_loss(clean_logits: Tensor, weight: float = 1.0) -> PerImageLoss:
    """Margin plus pairing distance to the clean logits, both in units of the clean logits' spread.

    The pairing term is what AALP trained to be small: following it leads away from where the network was made flat.
    """
    spread = (clean_logits.amax(1, keepdim=True) - clean_logits.amin(1, keepdim=True)).clamp_min(1e-12)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        scaled = logits / spread
        return margin(scaled, labels) + weight * logit_pairing(clean_logits / spread, scaled)

    return loss


def suppression_loss(classifier: ImageClassifier, clean_features: Tensor, labels: Tensor, mask: Tensor | None) -> PerImageLoss:
    """On features: the best wrong class's logit minus what the label gets from its high-contribution features.

    Which those are is decided on the clean image.
    """
    weight = classifier.head_weight.detach()
    high = ~guided_set(contributions(clean_features, weight, labels), HIGH)

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        features = features if mask is None else features * mask
        carried = (contributions(features, weight, labels) * high).sum(1)
        # The margin's rival, with the label's own logit out of it.
        return margin(classifier.head(features), labels) + classifier.head(features).gather(1, labels[:, None])[:, 0] - carried

    return loss


class _Features(View):
    """Gives features where logits are asked for, so that the one PGD loop ascends on them."""

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.classifier.features(images)


def adaptive_attack(
    kind: str,
    masked: bool,
    classifier: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    steps: int,
    seed: int,
    step_size: float | None = None,
) -> Tensor:
    """Candidates (N, ...) of one adaptive attack.

    Args:
        kind: "pairing" or "features".
        masked: ascend through a Guided Dropout mask that is drawn once.
        images: (N, ...) float32 in [0, 1]; the classifier is in evaluation mode.
        step_size: in pixel units; as for `perturb` by default.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    deployed = WithGradient(classifier)
    with torch.no_grad():
        clean_features = classifier.features(images)
        mask = None
        if masked:
            shares = contributions(clean_features, classifier.head_weight, labels)
            mask = keep_mask(shares, MASK, generator=generator)
        clean_logits = classifier.head(clean_features, mask)
    best = _Best(classifier, labels)
    if kind == "pairing":
        last = perturb(
            *(deployed, images, labels, threat, steps, step_size, pairing_loss(clean_logits)),
            mask=mask,
            generator=generator,
            observe=best,
        )
    else:
        loss = suppression_loss(classifier, clean_features, labels, mask)
        last = perturb(_Features(deployed), images, labels, threat, steps, step_size, loss, generator=generator, observe=best)
    best(last)
    assert best.images is not None
    return best.images


class _Best:
    """Keeps, image by image, the iterate with the largest margin under the deployed network."""

    def __init__(self, classifier: ImageClassifier, labels: Tensor) -> None:
        self.classifier, self.labels = classifier, labels
        self.images: Tensor | None = None
        self.margins: Tensor | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, _outputs: Tensor | None = None) -> None:
        margins = margin(self.classifier(images), self.labels)
        if self.images is None or self.margins is None:
            self.images, self.margins = images.clone(), margins
            return
        better = margins > self.margins
        self.images[better], self.margins[better] = images[better], margins[better]
