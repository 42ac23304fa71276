"""Everything that is measured on one classifier, as plain values for a record, tables and a gallery of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aalp.analysis import concentration, conflict, robustness_curves
from aalp.analysis.pairs import ATTACK, collect_pairs
from aalp.data.loaders import Tick
from aalp.data.split import Split, as_float
from aalp.method.pgd import evaluating
from aalp.method.precision import full_precision
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier

GALLERY_IMAGES = 20
"""Images that a report may show."""

WEIGHT_CONFLICT_IMAGES = 200
"""Images on which both losses' gradients in the weights are compared: two backward passes each."""


@dataclass(frozen=True)
class Analysis:
    """What was measured.

    Attributes:
        content: JSON values (see docs/analysis.md).
        images: columns of the table with one row an image.
        gallery: `clean` and `adversarial` (M, channels, height, width) float32 in [0, 1].
    """

    content: dict[str, Any]
    images: dict[str, list[Any]]
    gallery: dict[str, Tensor]


def analyze_classifier(
    classifier: Classifier,
    split: Split,
    threat: Threat,
    classes: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    tick: Tick,
) -> Analysis:
    """Observations 1 and 2 and the robustness breakdown of a classifier, in float32 and evaluation mode.

    Args:
        classifier: on the device to work on.
        split: images of C classes.
        classes: C names.
        seed: of the attacks' random starts.
    """
    gallery = gallery_rows(split.labels)
    sample = torch.linspace(0, len(split) - 1, min(len(split), WEIGHT_CONFLICT_IMAGES)).long()
    device = classifier.head_weight.device
    with evaluating(classifier), full_precision():
        pairs = collect_pairs(
            classifier, split, threat, keep=torch.cat([gallery, sample]), batch_size=batch_size, seed=seed, tick=tick
        )
        curve = robustness_curves.eps_curve(classifier, split, threat, pairs.right, batch_size=batch_size, seed=seed, tick=tick)
        clean = as_float(split.read(torch.cat([gallery, sample]))).cpu()
        images, adversarial = (side[len(gallery) :].to(device) for side in (clean, pairs.kept))
        cosines = conflict.weight_conflict(classifier, images, adversarial, split.labels[sample].to(device))
        top_k = concentration.top_k_accuracy(classifier, pairs)
    sides = {"clean": pairs.clean, "adversarial": pairs.adversarial}
    contributions = {name: concentration.of_side(side, classifier.head_weight, pairs.labels) for name, side in sides.items()}
    content = {
        "features": classifier.num_features,
        "attack": ATTACK,
        "contributions": {
            name: {target: concentration.summarise(values) for target, values in side.items()}
            for name, side in contributions.items()
        },
        "top_k": top_k,
        "fewest_features": {name: concentration.fewest_features(top_k, name) for name in ("clean", "robust")},
        "eps_curve": curve,
        "eps_curve_attack": robustness_curves.CURVE_ATTACK,
        "per_class": robustness_curves.per_class(pairs, classes),
        "confusion": robustness_curves.confusion(pairs, len(classes)),
        "conflict": conflict.summarise(pairs, cosines),
        "gallery": {
            "labels": pairs.labels[gallery].tolist(),
            "clean_predictions": pairs.clean.predictions[gallery].tolist(),
            "adversarial_predictions": pairs.adversarial.predictions[gallery].tolist(),
            "attack": ATTACK,
        },
    }
    columns: dict[str, Tensor] = {
        "label": pairs.labels,
        "clean_prediction": pairs.clean.predictions,
        "adversarial_prediction": pairs.adversarial.predictions,
    }
    for name, side in contributions.items():
        for target, values in side.items():
            columns |= {f"{figure}_{name}_{target}": column for figure, column in concentration.measure(values).items()}
    columns |= conflict.pair_measures(pairs)
    shown = {"clean": clean[: len(gallery)], "adversarial": pairs.kept[: len(gallery)]}
    return Analysis(content, {name: column.tolist() for name, column in columns.items()}, shown)


def gallery_rows(labels: Tensor) -> Tensor:
    """The first image of each class, then the second of each, and so on, up to `GALLERY_IMAGES`: picked by no outcome."""
    seen: dict[int, int] = {}
    order = []
    for row, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], label, row))
    return torch.tensor([row for _, _, row in sorted(order)[:GALLERY_IMAGES]], dtype=torch.int64)
