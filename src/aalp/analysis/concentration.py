"""Observation 1 (arXiv 2005.11904): a robust network decides with fewer, higher-contributing features.

Shapes: N images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aalp.analysis.pairs import Pairs, Views
from aalp.method.contributions import concentration_n, contributions, effective_number, gini
from aalp.method.losses import misclassified
from aalp.models.classifier import Classifier

EVERY_COUNT_UP_TO = 256
"""Features up to which the accuracy with the top k is measured for every k."""

POINTS = 64
"""Values of k in a curve over more features than can all be shown."""


def feature_counts(features: int, points: int = POINTS) -> list[int]:
    """Feature counts from 1 to D: all of them if they are at most `points`, else at most `points` log-spaced ones."""
    if features <= points:
        return list(range(1, features + 1))
    exponents = torch.linspace(0, 1, points, dtype=torch.float64)
    return sorted({round(features**exponent) for exponent in exponents.tolist()})


def measure(contribution: Tensor) -> dict[str, Tensor]:
    """n90, effective number and Gini coefficient, (N,) each, of contributions (N, D)."""
    return {
        "n90": concentration_n(contribution),
        "effective_number": effective_number(contribution),
        "gini": gini(contribution),
    }


def carried_share(contribution: Tensor, counts: Sequence[int]) -> list[float]:
    """Share of the positive contributions (N, D) that the k largest of an image carry, for each k: mean over images.

    Images without a positive contribution have no shares and are left out; without any other image all shares are 0.
    """
    ordered = contribution.clamp_min(0).double().sort(dim=1, descending=True).values
    carried = ordered.cumsum(1)
    some = carried[:, -1] > 0
    if not bool(some.any()):
        return [0.0] * len(counts)
    shares = (carried[some] / carried[some, -1:]).mean(0)
    return [float(shares[count - 1]) for count in counts]


def summarise(contribution: Tensor) -> dict[str, Any]:
    """Means over images of what contributions (N, D) look like, with their curve."""
    counts = feature_counts(contribution.shape[1])
    return {
        "curve": carried_share(contribution, counts),
        "curve_features": counts,
        **{name: float(values.double().mean()) for name, values in measure(contribution).items()},
        "without_positive": int((contribution <= 0).all(1).sum()),
    }


def of_side(views: Views, head_weight: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Contributions (N, D) to the class that is predicted from this side, and to the true class."""
    weight = head_weight.detach().cpu().float()
    return {
        "predicted": contributions(views.features, weight, views.predictions),
        "true": contributions(views.features, weight, labels),
    }


@torch.no_grad()
def top_k_accuracy(classifier: Classifier, pairs: Pairs, counts: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Accuracy when each image keeps only the k features that contribute most to the class predicted from all of them.

    The other features are set to 0 by the head's mask; the head's bias stays, as it belongs to no feature. `robust`
    means right on the clean and on the adversarial image, which was found on the whole network: it tells how many
    features the network's decisions on those very images need, and is *not* an attack on the masked network.

    Args:
        counts: values of k; by default 1 to D, or about 64 log-spaced ones where D > 256.

    Returns:
        k, clean and robust accuracy for each k.
    """
    device, weight = classifier.head_weight.device, classifier.head_weight.detach()
    features = weight.shape[1]
    counts = counts or feature_counts(features, EVERY_COUNT_UP_TO if features <= EVERY_COUNT_UP_TO else POINTS)
    labels = pairs.labels.to(device)
    sides = []
    for views in (pairs.clean, pairs.adversarial):
        seen, predicted = views.features.to(device), views.predictions.to(device)
        ranks = contributions(seen, weight, predicted).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        sides.append((seen, ranks))
    rows = []
    for count in counts:
        right = [~misclassified(classifier.head(seen, ranks < count), labels) for seen, ranks in sides]
        clean, robust = right[0], right[0] & right[1]
        rows.append({"k": count, "clean": float(clean.double().mean()), "robust": float(robust.double().mean())})
    return rows


def fewest_features(top_k: Sequence[Mapping[str, Any]], figure: str, share: float = 0.95) -> int | None:
    """The smallest measured k whose accuracy is at least `share` of that with all features; None if that is 0."""
    full = top_k[-1][figure]
    if full == 0:
        return None
    # 0.95 times 20 of 53 images is a rounding above 19 of 53, and means them.
    return next(int(row["k"]) for row in top_k if row[figure] >= share * full * (1 - 1e-9))
