"""Robustness in detail: accuracy against eps, by class, who is taken for whom under attack, which attack breaks what."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aalp.analysis.pairs import STEPS, Pairs, attack, batches
from aalp.data.loaders import Tick
from aalp.data.split import Split
from aalp.method.losses import margin, misclassified
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.seeding import derive_seed

MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
CURVE_ATTACK = f"cw-{STEPS}"
"""PGD-20 on the margin, by the name that evaluations give it."""


def eps_values(threat: Threat, image_shape: Sequence[int]) -> list[float]:
    """Radii from 0 to twice the threat's, and the smallest one that reaches every image there is."""
    everything = 1.0 if threat.norm == "Linf" else math.sqrt(math.prod(image_shape))
    return [0.0, *(value for value in (m * threat.eps for m in MULTIPLES) if value < everything), everything]


@torch.no_grad()
def eps_curve(
    classifier: Classifier,
    split: Split,
    threat: Threat,
    right: Tensor,
    *,
    batch_size: int,
    seed: int,
    tick: Tick = lambda name, done, total: None,
) -> list[dict[str, float]]:
    """Accuracy under PGD-20 on the margin for each radius of `eps_values`.

    An image that a smaller ball broke stays broken, since the larger ball holds the smaller: only those that stand
    are attacked again, and accuracy never rises with eps.

    Args:
        classifier: in evaluation mode, on the device to work on.
        right: (N,) images that are classified right clean.
    """
    standing = right.clone()
    device = classifier.head_weight.device
    curve = [{"eps": 0.0, "accuracy": float(standing.double().mean())}]
    for eps in eps_values(threat, split.image_shape)[1:]:
        ball, name = dataclasses.replace(threat, eps=eps), f"{CURVE_ATTACK} at eps {eps:.3g}"
        rows_left = standing.nonzero()[:, 0]
        for number, (rows, images, labels) in enumerate(batches(split, rows_left, batch_size, device, name, tick)):
            adversarial = attack(classifier, images, labels, ball, margin, derive_seed("eps curve", eps.hex(), seed, number))
            standing[rows] &= ~misclassified(classifier(adversarial), labels).cpu()
        curve.append({"eps": eps, "accuracy": float(standing.double().mean())})
    return curve


def per_class(pairs: Pairs, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Images, clean and robust accuracy of each class; accuracies of a class without images are None."""
    rows = []
    for number, name in enumerate(classes):
        own = pairs.labels == number
        count = int(own.sum())
        clean, robust = (float(held[own].double().mean()) if count else None for held in (pairs.right, pairs.standing))
        rows.append({"name": name, "images": count, "clean": clean, "robust": robust})
    return rows


def confusion(pairs: Pairs, classes: int) -> list[list[int]]:
    """Counts of images of class i (row) that are taken for class j (column) under attack."""
    table: Tensor = torch.bincount(pairs.labels * classes + pairs.adversarial.predictions, minlength=classes**2)
    rows: list[list[int]] = table.reshape(classes, classes).tolist()
    return rows


def attack_overlap(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """What each attack of an evaluation breaks, from its table of images.

    Returns:
        For each attack its name, accuracy, `breaks` (images that are right clean and that it broke) and
        `breaks_alone` (those that no other attack broke).
    """
    prefix = "stands_"
    names = [column.removeprefix(prefix) for column in columns if column.startswith(prefix)]
    count = len(columns["label"])
    right = [label == predicted for label, predicted in zip(columns["label"], columns["clean_prediction"], strict=True)]
    broken = {name: {row for row, stands in enumerate(columns[prefix + name]) if right[row] and not stands} for name in names}
    rows = []
    for name, rows_broken in broken.items():
        others = set().union(*(found for other, found in broken.items() if other != name))
        accuracy = (sum(right) - len(rows_broken)) / count
        rows.append({"name": name, "accuracy": accuracy, "breaks": len(rows_broken), "breaks_alone": len(rows_broken - others)})
    return rows
