"""What an objective is: what it is called with, what it answers, and the terms that several of them share.

Clean and adversarial images go through the network in one forward pass, so BatchNorm sees both in one batch.

Shapes: N images, C classes, D features. Per-image terms are averaged over the batch at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aalp.errors import DataError, check_share
from aalp.method import losses
from aalp.method.batches import class_numbers, float_images
from aalp.method.pgd import ImageClassifier, InnerLoss
from aalp.method.sample_weights import conflict_cosine


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


class Objective:
    """What a classifier is trained on: a subclass says what the adversary maximises (`inner`) and the `loss`."""

    @property
    def inner(self) -> InnerLoss | None:
        """What the adversary maximises; None where there is no adversary."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> LossParts:
        """The batch's loss."""
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
        """The batch's loss.

        Args:
            classifier: an `aalp.Classifier` in training mode.
            images: (N, ...) clean images in [0, 1].
            adversarial: (N, ...) what `aalp.perturb` made of them.
            labels: (N,) integers in 0..C-1, of any integer type.
            progress: share of the training that is done, 0 to 1, for what changes over it (AALP); 1: as at its end.
            generator: source of randomness, on the images' device.
            mask: feature factors (N, D) to use instead of drawing them (AALP that attacked through its mask).

        Raises:
            DataError: images are no floats, labels no (N,) integers, or there is not one adversarial image for each.
            OptionError: progress lies outside [0, 1].
        """
        images, adversarial, labels = float_images(images), float_images(adversarial), class_numbers(labels)
        check_share("progress", progress)
        if len(images) != len(adversarial):
            raise DataError(f"there are {len(images)} images and {len(adversarial)} adversarial ones: give one for each image")
        return self.loss(Batch(classifier, images, adversarial, labels, progress, generator, mask))


def averaged(per_image: Tensor, terms: dict[str, Tensor], logits: Tensor) -> LossParts:
    """The batch's loss from terms of each image (N,)."""
    means = {name: term.detach().mean() for name, term in terms.items()}
    return LossParts(per_image.mean(), means, logits.detach())


def shared_cross_entropy(share: float, clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """(1 - s) CE(z', y) + s CE(z, y) with s = share."""
    clean = losses.cross_entropy(clean_logits, labels)
    adversarial = losses.cross_entropy(adversarial_logits, labels)
    return share * clean + (1.0 - share) * adversarial


@torch.no_grad()
def conflict(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, pairing: Tensor) -> dict[str, Tensor]:
    """Observation 2 on this batch: how often the two losses pull apart, and who carries the pairing loss."""
    wrong = (clean_logits.argmax(1) != labels).float()
    return {
        "conflict_rate": (conflict_cosine(clean_logits, adversarial_logits, labels) < 0).float(),
        # The same at the clean logits, where the pairing pulls towards the adversarial ones.
        "conflict_rate_clean": (conflict_cosine(adversarial_logits, clean_logits, labels) < 0).float(),
        "misclassified_rate": wrong,
        "misclassified_share": wrong * pairing / pairing.mean().clamp_min(torch.finfo(torch.float32).tiny),
    }
