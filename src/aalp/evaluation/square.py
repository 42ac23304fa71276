"""Square in Linf (arXiv 1912.00049), query by query what pyautoattack's does, without the queries whose answer is known.

The proposals (where, how large, which signs) depend on the seed alone, so they are drawn first, and then

- each image goes through them at its own pace, several at once where none has been accepted for a while: an acceptance
  only takes back what was asked after it;
- a proposal that changes nothing, or that was refused since the last acceptance, is passed over: the network is
  deterministic, so the answer would be the same. On small images that is most of them.

In float32 throughout: the differences that it follows are smaller than what bfloat16 rounds away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aalp.evaluation.views import Views
from aalp.method.losses import margin, misclassified

FIRST_SHARE = 0.8
"""Share of the image that the first squares cover (`p_init`)."""

SHRINKS = ((10, 2), (50, 4), (200, 8), (500, 16), (1000, 32), (2000, 64), (4000, 128), (6000, 256), (8000, 512))
"""After so many queries the share is divided by so much."""

WINDOW = 256
"""How many proposals of an image are looked through at once."""


@dataclass(frozen=True)
class Proposals:
    """The squares (Q,): top row, left column, side, sign of each channel (Q, C), and a number that equal ones share."""

    rows: Tensor
    columns: Tensor
    sides: Tensor
    signs: Tensor
    kinds: Tensor
    different: int


def draw_proposals(queries: int, shape: torch.Size, generator: torch.Generator) -> Proposals:
    """The package's draws, in its order: row, column, signs.

    Args:
        shape: (C, H, W) of an image.
    """
    channels, height, width = shape
    places, signs, kinds = [], [], []
    known: dict[tuple[object, ...], int] = {}
    for query in range(queries):
        share = FIRST_SHARE / max((divisor for after, divisor in SHRINKS if query > after), default=1)
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        row = int((height - side) * torch.rand(1, generator=generator))
        column = int((width - side) * torch.rand(1, generator=generator))
        sign = torch.sign(2 * torch.rand(channels, 1, 1, generator=generator) - 1).flatten()
        places.append((row, column, side))
        signs.append(sign)
        kinds.append(known.setdefault((row, column, side, *sign.tolist()), len(known)))
    rows, columns, sides = torch.tensor(places).unbind(1)
    return Proposals(rows, columns, sides, torch.stack(signs), torch.tensor(kinds), len(known))


@torch.no_grad()
def square_linf(views: Views, images: Tensor, labels: Tensor, eps: float, seed: int, queries: int, capacity: int) -> Tensor:
    """Candidates (N, C, H, W): the most adversarial image that was found for each.

    Args:
        queries: for each image.
        capacity: images that go through the network together.
    """
    generator = torch.Generator().manual_seed(seed)
    stripes = torch.sign(2 * torch.rand(len(images), images.shape[1], 1, images.shape[3], generator=generator) - 1)
    search = _Square(views, images, labels, eps, (images + eps * stripes.to(images.device)).clamp(0, 1), queries)
    search.draw(generator)
    while search.round(capacity):
        pass
    return search.best


class _Square:
    """The search under way.

    Attributes:
        best, margins: (N, C, H, W) and (N,): the best image so far and by how much it is still classified right.
        at: (N,) the next query.
        ahead: (N,) how many to ask at once.
        refused: (N, kinds) proposals that did not better `best`.
    """

    def __init__(self, views: Views, images: Tensor, labels: Tensor, eps: float, start: Tensor, queries: int) -> None:
        self.views, self.labels, self.eps, self.queries = views, labels, eps, queries
        self.low, self.high = images - eps, images + eps
        self.best = start
        self.margins = self.steady(start, torch.arange(len(images), device=images.device))
        self.at = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.ahead = torch.ones_like(self.at)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the proposals."""
        device = self.best.device
        drawn = draw_proposals(self.queries, self.best.shape[1:], generator)
        self.kinds, self.signs = drawn.kinds.to(device), drawn.signs.to(device)
        self.rows, self.columns, self.sides = (each.to(device) for each in (drawn.rows, drawn.columns, drawn.sides))
        self.refused = torch.zeros(len(self.best), drawn.different, dtype=torch.bool, device=device)

    def steady(self, points: Tensor, rows: Tensor) -> Tensor:
        """By how much points (M, ...) of these images are classified right; whether at all, the deployed network says."""
        if len(points) == 0:
            return points.new_zeros(0)
        margins = -margin(self.views.steady(points), self.labels[rows])
        claims = (~(margins > 0)).nonzero()[:, 0]
        if len(claims):
            logits, labels = self.views.judge(points[claims]), self.labels[rows[claims]]
            judged = -margin(logits, labels)
            # A tie may still be classified right: the package leaves such an image standing, here its search goes on.
            tie = judged.clamp_min(torch.finfo(judged.dtype).tiny)
            margins[claims] = torch.where(misclassified(logits, labels), judged.nan_to_num(0.0).clamp_max(0), tie)
        return margins

    def round(self, capacity: int) -> bool:
        """Ask the next queries of every image that stands; whether there were any."""
        active = ((self.margins > 0) & (self.at < self.queries)).nonzero()[:, 0]
        if len(active) == 0:
            return False
        queries = self.at[active, None] + torch.arange(WINDOW, device=active.device)
        inside = queries < self.queries
        queries = queries.clamp_max(self.queries - 1)
        open_ = inside & ~self.refused[active].gather(1, self.kinds[queries])
        ahead = self.ahead[active].clamp_max(max(1, capacity // len(active)))
        taken = open_ & (open_.cumsum(1) <= ahead[:, None])
        place, offset = taken.nonzero(as_tuple=True)
        # Behind the last query that is asked now; where the whole window is known, behind it.
        last = torch.where(taken.any(1), taken.long().cumsum(1).argmax(1) + 1, WINDOW)
        self.at[active] += last
        if len(place):
            self.answer(active[place], queries[place, offset])
        return True

    def answer(self, images: Tensor, queries: Tensor) -> None:
        """Put (image, query) pairs, ordered by both, to the network, and accept the first of each image that betters it."""
        points = self.proposed(images, queries)
        changed = (points != self.best[images]).flatten(1).any(1).nonzero()[:, 0]
        margins = self.steady(points[changed], images[changed])
        better = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        better[changed] = (margins < self.margins[images[changed]]) | (margins <= 0)
        accepted = better.nonzero()[:, 0]
        self.refused[images, self.kinds[queries]] = True
        self.ahead[images] = (self.ahead[images] * 2).clamp_max(WINDOW)
        if len(accepted) == 0:
            return
        owners = images[accepted]
        first = torch.ones_like(owners, dtype=torch.bool)
        first[1:] = owners[1:] != owners[:-1]
        accepted, owners = accepted[first], owners[first]
        where = torch.full((len(images),), -1, device=images.device)
        where[changed] = torch.arange(len(changed), device=images.device)
        self.best[owners] = points[accepted]
        self.margins[owners] = margins[where[accepted]]
        self.at[owners] = queries[accepted] + 1
        self.refused[owners] = False
        self.ahead[owners] = 1

    def proposed(self, images: Tensor, queries: Tensor) -> Tensor:
        """The best images with their square set (M, C, H, W)."""
        height, width = self.best.shape[2:]
        down, right = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        top, left, side = self.rows[queries, None], self.columns[queries, None], self.sides[queries, None]
        in_rows, in_columns = (down >= top) & (down < top + side), (right >= left) & (right < left + side)
        inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
        change = inside * (2 * self.eps * self.signs[queries])[:, :, None, None]
        return torch.clamp(self.best[images] + change, self.low[images], self.high[images]).clamp(0, 1)
