"""Threat models: the sets of images an adversary may show instead of a clean one.

A threat is a ball of radius eps around the clean image, in pixel space, cut to the valid
range [0, 1]. The three operations that every gradient attack needs (a random start, a step of
steepest ascent, a projection) live here, so that one attack loop serves every norm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aalp.errors import OptionError
from aalp.method.batches import per_image

# Float32 arithmetic on images in [0, 1] rounds at 6e-8; a check of the ball must forgive a few such roundings and no more.
# Where eps is above 1 it is relative to eps, as the rounding of a distance is.
BALL_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Threat(ABC):
    """A ball of radius `eps` in pixel units (images in [0, 1]).

    Args:
        eps: radius of the ball, > 0.

    Raises:
        OptionError: eps is not a positive, finite number.
    """

    eps: float

    def __post_init__(self) -> None:
        if isinstance(self.eps, str) or self.eps is None or not (math.isfinite(self.eps) and self.eps > 0):
            raise OptionError(f"eps is {self.eps}: it has to be a positive number in pixel units, such as 8/255 = 0.0314")

    @property
    @abstractmethod
    def norm(self) -> str:
        """The norm's name as attack libraries write it: `Linf` or `L2`."""

    @abstractmethod
    def random_start(self, images: Tensor, generator: torch.Generator | None = None, scale: float = 1.0) -> Tensor:
        """Images (N, ...) moved to random points of the ball of radius scale * eps; not projected."""

    @abstractmethod
    def steepest_step(self, gradient: Tensor) -> Tensor:
        """The direction (N, ...) of unit norm along which a linear loss with this gradient rises fastest.

        A pixel whose slope is no number stays; infinite slopes outweigh all others.
        """

    @abstractmethod
    def project(self, candidates: Tensor, images: Tensor) -> Tensor:
        """Candidates (N, ...) moved to the nearest point of the ball around images, then cut to [0, 1]."""

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """`project` onto the ball around these images, prepared for many candidates."""
        return lambda candidates: self.project(candidates, images)

    @abstractmethod
    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        """Distance (N,) between candidates and images in this norm, in pixel units."""

    def contains(self, candidates: Tensor, images: Tensor) -> Tensor:
        """Which candidates (N,) lie in the ball and in [0, 1], up to float32 rounding (`BALL_TOLERANCE`)."""
        flat = candidates.flatten(1)
        in_range = (flat >= 0).all(1) & (flat <= 1).all(1)
        return in_range & (self.distance(candidates, images) <= self.eps + BALL_TOLERANCE * max(1.0, self.eps))


@dataclass(frozen=True)
class Linf(Threat):
    """No pixel moves by more than eps.

    Raises:
        OptionError: eps is no number in (0, 1]; more than 1 would be meant in steps of 0..255.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > 1:
            raise OptionError(f"eps is {self.eps:g}: pixels end at 1, so no image is further; of 0..255 give {self.eps:g}/255")

    @property
    def norm(self) -> str:
        return "Linf"

    def random_start(self, images: Tensor, generator: torch.Generator | None = None, scale: float = 1.0) -> Tensor:
        noise = torch.empty_like(images).uniform_(-1.0, 1.0, generator=generator)
        return images + noise * (scale * self.eps)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, candidates: Tensor, images: Tensor) -> Tensor:
        return self.projection(images)(candidates)

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        # Ball and pixel range are one box: its corners are worked out once, and a projection is one pass.
        low, high = ((images + shift).clamp_(0.0, 1.0) for shift in (-self.eps, self.eps))
        return lambda candidates: candidates.clamp(low, high)

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        return (candidates - images).abs().flatten(1).amax(1)


@dataclass(frozen=True)
class L2(Threat):
    """The Euclidean length of the change of all pixels together is at most eps."""

    @property
    def norm(self) -> str:
        return "L2"

    def random_start(self, images: Tensor, generator: torch.Generator | None = None, scale: float = 1.0) -> Tensor:
        direction = torch.empty_like(images).normal_(generator=generator)
        radius = torch.rand(len(images), generator=generator, device=images.device, dtype=images.dtype)
        # In d dimensions the volume within radius r grows as r^d: the d-th root makes the points uniform in the ball.
        radius = radius.pow(1.0 / direction[0].numel()) * (scale * self.eps)
        return images + self.steepest_step(direction) * per_image(radius, images)

    def steepest_step(self, gradient: Tensor) -> Tensor:
        tiny = torch.finfo(gradient.dtype).tiny
        # One pixel whose slope is no number or infinite, as that of a root at 0, must not take the others with it.
        gradient = gradient.nan_to_num(0.0)
        # Largest entry first: the squares of a very small or very large gradient leave float32's range.
        scaled = gradient / per_image(gradient.flatten(1).abs().amax(1).clamp_min(tiny), gradient)
        return scaled / per_image(scaled.flatten(1).norm(dim=1).clamp_min(tiny), scaled)

    def project(self, candidates: Tensor, images: Tensor) -> Tensor:
        change = candidates - images
        length = _length(change).clamp_min(torch.finfo(change.dtype).tiny)
        shrink = (self.eps / length).clamp_max(1.0).to(change.dtype)
        # Cutting to [0, 1] afterwards only moves points towards the image (which is in [0, 1]), so the ball still holds.
        return (images + change * per_image(shrink, change)).clamp_(0.0, 1.0)

    def distance(self, candidates: Tensor, images: Tensor) -> Tensor:
        change = candidates - images
        return _length(change).to(change.dtype)


def check_threat(threat: object) -> Threat:
    """The threat, if it is one and not, say, a bare eps.

    Raises:
        OptionError: naming what it is.
    """
    if not isinstance(threat, Threat):
        found = "missing" if threat is None else repr(threat)
        raise OptionError(f"threat is {found}: give one, such as Linf(8 / 255)")
    return threat


def _length(change: Tensor) -> Tensor:
    """The Euclidean length (N,) of changes (N, ...), in float64: summed in float32, that of a large image is off by more
    than the ball's tolerance."""
    length: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1, dtype=torch.float64)
    return length
