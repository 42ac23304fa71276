"""Another random start of the training attack tried in AALP, in Linf: `aalp` with three more values of `method.distance`.

    python benchmarks/study/other_starts.py compare --config benchmarks/study/digits-starts.yaml --run runs/digits-starts

corner  a corner of the ball for each pixel by itself, +-eps, where the usual start is uniform between the two.
coarse  such corners for blocks of 2, 4, 7 or 14 pixels: what Square (arXiv 1912.00049) looks among.
half    coarse for half of the images of a batch, drawn anew for each batch, the usual start for the other half.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch
from torch import Tensor

from aalp.cli import main
from aalp.method import aalp as method
from aalp.method import losses, pgd
from aalp.method.threat import Linf

Distance = Literal["squared", "one-sided", "kl", "corner", "coarse", "half"]

BLOCKS = (2, 4, 7, 14)


def signs(shape: tuple[int, ...], images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random signs of this shape."""
    return torch.sign(2 * torch.rand(shape, generator=generator, device=images.device) - 1)


def coarse(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Signs (N, C, H, W) that are the same in blocks, whose size and place are drawn once for the batch."""
    count, channels, height, width = images.shape
    size = BLOCKS[int(torch.randint(len(BLOCKS), (1,), generator=generator))]
    blocks = signs((count, channels, height // size + 2, width // size + 2), images, generator)
    shift = int(torch.randint(size, (1,), generator=generator))
    grown = blocks.repeat_interleave(size, 2).repeat_interleave(size, 3)
    return grown[:, :, shift : shift + height, shift : shift + width]


def patch() -> None:
    """Put the starts into `aalp`, by the name of a distance, which all three have in common with `squared`."""
    patched: Any = method
    threat: Any = Linf
    uniform = Linf.random_start
    chosen = "squared"

    def inner(self: method.AALP) -> pgd.InnerLoss:
        nonlocal chosen  # the attack of training asks for its loss, and starts next
        chosen = str(self.distance)
        return losses.cross_entropy

    def start(self: Linf, images: Tensor, generator: torch.Generator | None = None, scale: float = 1.0) -> Tensor:
        nonlocal chosen
        kind, chosen = chosen, "squared"  # attacks of validation and evaluation start as usual
        usual = uniform(self, images, generator, scale)
        if kind == "corner":
            return images + scale * self.eps * signs(tuple(images.shape), images, generator)
        if kind not in ("coarse", "half"):
            return usual
        blocks = images + scale * self.eps * coarse(images, generator)
        if kind == "coarse":
            return blocks
        return torch.where(signs((len(images), 1, 1, 1), images, generator) > 0, blocks, usual)

    patched.Distance = Distance  # what the command line takes
    patched.AALP.inner, threat.random_start = property(inner), start
    patched.DISTANCES |= dict.fromkeys(["corner", "coarse", "half"], losses.logit_pairing)


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
