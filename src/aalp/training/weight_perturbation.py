"""Adversarial weight perturbation (AWP, arXiv 2004.05884): take the gradient where a small step in weight space hurts most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed_weights(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], gamma: float) -> Iterator[None]:
    """Inside the block, w + gamma * |w| * g / |g| for each weight tensor; after it, w again, exactly.

    Args:
        parameters: the weights; vectors and scalars (biases, norms) stay as they are, as in the authors' code.
        gradients: of the loss to raise, one for each parameter, None where there is none.
        gamma: relative size of the step.
    """
    moved = [
        (parameter, gradient, parameter.detach().clone())
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if parameter.dim() > 1 and gradient is not None
    ]
    with torch.no_grad():
        for parameter, gradient, original in moved:
            scale = gamma * float(original.norm() / gradient.norm())
            if math.isfinite(scale):  # a gradient of 0 points nowhere
                parameter.add_(gradient, alpha=scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, _, original in moved:
                parameter.copy_(original)
