"""The other classes that a targeted search is aimed at, one after the other or several at once, while an image stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aalp.evaluation.views import Views

MOST_TARGETS = 9
"""As in the package: the likeliest other classes."""

TargetedSearch = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(images (n * k, ...), their labels, targets, k) -> candidates: n images k times over, for k targets of each."""


def over_targets(
    views: Views, images: Tensor, labels: Tensor, capacity: int, search: TargetedSearch, first_alone: bool = False
) -> Tensor:
    """Candidates (N, ...) for up to 9 other classes, the likeliest first; an image that none was found for comes back.

    Args:
        capacity: as many targets as fill it go through the network together.
        first_alone: the likeliest class by itself: aiming at others at the same time is wasted on what it breaks.
    """
    # The label first, whatever it ties with: else it is what the search aims at, and of two classes the only thing.
    order = views.judge(images).scatter(1, labels[:, None], torch.inf).sort(dim=1).indices.flip(1)
    candidates = images.clone()
    targets = min(MOST_TARGETS, order.shape[1] - 1)
    first, standing = 1, ~views.wrong(images, labels)
    while first <= targets and bool(standing.any()):
        rows = standing.nonzero()[:, 0]
        together = 1 if first_alone and first == 1 else min(max(1, capacity // len(rows)), targets + 1 - first)
        aims = torch.cat([order[rows, rank] for rank in range(first, first + together)])
        repeated = rows.repeat(together)
        found = search(images[repeated], labels[repeated], aims, together)
        fooled = views.wrong(found, labels[repeated])
        candidates[repeated[fooled]] = found[fooled]
        standing[repeated[fooled]] = False
        first += together
    return candidates
