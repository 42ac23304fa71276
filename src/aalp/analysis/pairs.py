"""Pairs of a clean image and its adversarial twin, as the network sees them: what every measurement here starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aalp.data.loaders import Tick, read_rows, row_batches
from aalp.data.split import Split
from aalp.method.losses import cross_entropy, misclassified
from aalp.method.pgd import InnerLoss, equal_step, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.seeding import derive_seed

STEPS = 20
ATTACK = f"pgd-{STEPS}"


@dataclass(frozen=True)
class Views:
    """One side of all pairs.

    Attributes:
        features: (N, D) the head's input, float32 on the CPU.
        logits: (N, C).
    """

    features: Tensor
    logits: Tensor

    @property
    def predictions(self) -> Tensor:
        """(N,) predicted classes."""
        return self.logits.argmax(1)


@dataclass(frozen=True)
class Pairs:
    """Clean images and what the attack made of them.

    Attributes:
        labels: (N,) true classes.
        kept: (M, channels, height, width) adversarial images of the rows asked for, in their order.
    """

    labels: Tensor
    clean: Views
    adversarial: Views
    kept: Tensor

    @property
    def right(self) -> Tensor:
        """(N,) classified right clean."""
        return ~misclassified(self.clean.logits, self.labels)

    @property
    def standing(self) -> Tensor:
        """(N,) classified right clean and under the attack."""
        return self.right & ~misclassified(self.adversarial.logits, self.labels)


@torch.no_grad()
def collect_pairs(
    classifier: Classifier,
    split: Split,
    threat: Threat,
    *,
    keep: Tensor,
    batch_size: int,
    seed: int,
    tick: Tick,
) -> Pairs:
    """Attack every image with PGD-20 on the cross-entropy, and keep what the network makes of both images of the pair.

    It is the attack that training pairs images with (with more steps) and that evaluations call `pgd-20`, down to
    its seeds. Images that the network gets wrong are attacked as well.

    Args:
        classifier: in evaluation mode, on the device to work on.
        keep: (M,) rows whose adversarial images are kept.
    """
    device = classifier.head_weight.device
    features: tuple[list[Tensor], list[Tensor]] = ([], [])
    logits: tuple[list[Tensor], list[Tensor]] = ([], [])
    kept: dict[int, Tensor] = {}
    wanted = set(keep.tolist())
    for number, (rows, images, labels) in enumerate(batches(split, torch.arange(len(split)), batch_size, device, ATTACK, tick)):
        adversarial = attack(classifier, images, labels, threat, cross_entropy, derive_seed("attack", ATTACK, seed, number))
        for side, shown in enumerate((images, adversarial)):
            seen = classifier.features(shown)
            features[side].append(seen.cpu())
            logits[side].append(classifier.head(seen).cpu())
        kept |= {row: image for row, image in zip(rows.tolist(), adversarial.cpu(), strict=True) if row in wanted}
    clean, attacked = (Views(torch.cat(f).float(), torch.cat(z).float()) for f, z in zip(features, logits, strict=True))
    images_kept = torch.stack([kept[row] for row in keep.tolist()])
    return Pairs(split.labels, clean, attacked, images_kept)


def attack(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, loss: InnerLoss, seed: int) -> Tensor:
    """PGD-20 from a random start: adversarial images (N, ...) inside the ball."""
    generator = torch.Generator(images.device).manual_seed(seed)
    candidates = perturb(classifier, images, labels, threat, STEPS, equal_step(STEPS) * threat.eps, loss, generator=generator)
    # A gradient that is not finite leaves no image behind: then the clean one stays.
    return threat.project(torch.where(torch.isfinite(candidates), candidates, images), images)


def batches(
    split: Split, rows: Tensor, batch_size: int, device: torch.device, name: str, tick: Tick
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, images in [0, 1], labels) of these rows of a split, the images and labels on the device."""
    for chunk in row_batches(rows, batch_size, name, tick):
        yield chunk, *read_rows(split, chunk, device)
