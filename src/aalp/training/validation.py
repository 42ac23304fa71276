"""How well a network in training does on the images held out: what its best epoch is chosen by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric

from aalp.data.loaders import Loader
from aalp.distributed import Ranks
from aalp.method.pgd import evaluating, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.models.folding_in_place import folded_norms
from aalp.seeding import derive_seed, seed_global_generators

AT_MOST, VALUES_AT_MOST = 500, 500 * 3 * 64 * 64
"""Images judged together on one device, and the most values that they may have together."""


def images_at_once(image_shape: Sequence[int]) -> int:
    """How many images of this shape (channels, height, width) are judged together: 500, of larger ones than 3x64x64 fewer.

    Whatever the training's batch, so that figures do not hang on it: of 500 images of 3x224x224 a ResNet-50 would keep four
    times as much as of a training's 128, and on each of several devices.
    """
    return max(1, min(AT_MOST, VALUES_AT_MOST // math.prod(image_shape)))


def accuracies(
    classifier: Classifier, validation: Loader, threat: Threat, steps: int, seed: int, fabric: Fabric, ranks: Ranks
) -> tuple[float, float]:
    """Clean accuracy and accuracy under PGD of so many steps, in [0, 1]; 0, 0 without any images. Together."""
    clean = robust = 0
    # Whole batches to each rank: what is judged together, and with which random starts, is as in one process.
    numbers = range(ranks.rank, len(validation), ranks.size)
    for number, (images, labels) in zip(numbers, validation.batches(start=ranks.rank, every=ranks.size), strict=False):
        batch_seed = derive_seed("validation", seed, number)
        generator = torch.Generator(fabric.device).manual_seed(batch_seed)
        seed_global_generators(derive_seed("network", batch_seed))
        with evaluating(classifier), folded_norms(classifier), fabric.autocast():
            adversarial = perturb(classifier, images, labels, threat, steps, generator=generator)
            with torch.no_grad():
                right = classifier(images).argmax(1) == labels
                holds = classifier(adversarial).argmax(1) == labels
        clean += int(right.sum())
        robust += int((right & holds).sum())
    clean, robust = ranks.total(clean, robust)
    count = max(1, len(validation.split))
    return clean / count, robust / count


def gives_one_answer(clean: float, robust: float, constant: float) -> bool:
    """Whether accuracies, in [0, 1], are those of one answer for all images, which no attack can break; see `largest_class`."""
    return clean == robust and clean <= constant


def has_collapsed(rows: Sequence[Mapping[str, Any]], constant: float) -> bool:
    """Whether the newest epoch left a network that gives one answer for all images, where one before it knew more.

    Many trainings begin with one answer, which does not count; nor does an epoch that follows one of the kind.

    Args:
        rows: of the metrics, an epoch each, with `validation_clean` and `validation_robust`.
        constant: see `largest_class`.
    """
    *earlier, newest = [(float(row["validation_clean"]), float(row["validation_robust"])) for row in rows]
    alike = [gives_one_answer(clean, robust, constant) for clean, robust in (*earlier[-1:], newest)]
    knew_more = any(clean > 2 * constant for clean, _ in earlier)
    return constant > 0 and knew_more and alike[-1] and not alike[0]
