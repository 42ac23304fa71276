"""One batch on several ranks: each works on its rows, and what is drawn or computed over a batch is that of the whole one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aalp.distributed import Ranks, Shard
from aalp.method.pgd import ImageClassifier, View
from aalp.method.threat import Threat


class WholeBatch(View):
    """Runs this rank's images and answers for the whole batch.

    An objective that is given it, this rank's images and the whole batch's labels computes the whole batch's loss: means,
    sample weights, dropout masks, random pairs and quantiles are those of one process, and every rank has them all. Only
    features and logits travel, never images. Gradients come out right under data parallelism, see `Ranks.gather_rows`.

    Args:
        count: N, images of the whole batch.
    """

    def __init__(self, classifier: ImageClassifier, ranks: Ranks, count: int) -> None:
        super().__init__(classifier)
        self.ranks, self.count = ranks, count

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.ranks.gather_rows(self.classifier(images), self.count)

    def features(self, images: Tensor, /) -> Tensor:
        return self.ranks.gather_rows(self.classifier.features(images), self.count)


@dataclass(frozen=True)
class ShardThreat(Threat):
    """A threat whose random starts are drawn for the whole batch, of which the images are one shard.

    Args:
        eps: that of the threat.
    """

    threat: Threat
    shard: Shard

    @property
    def norm(self) -> str:
        return self.threat.norm

    def random_start(self, images: Tensor, generator: torch.Generator | None = None, scale: float = 1.0) -> Tensor:
        shape = (self.shard.total, *images.shape[1:])
        # In the images' own memory layout: random numbers are filled in along it.
        origin = torch.empty_strided(shape, images.stride(), dtype=images.dtype, device=images.device).zero_()
        return images + self.threat.random_start(origin, generator, scale)[self.shard.rows]

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return self.threat.steepest_step(gradient)

    def project(self, candidates: Tensor, images: Tensor) -> Tensor:
        return self.threat.project(candidates, images)

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        return self.threat.projection(images)

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        return self.threat.distance(candidates, images)
