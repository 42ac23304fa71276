"""Per-image loss terms: pure functions from logits to one number an image; the caller reduces.

Shapes: N images, C classes; logits (N, C) are raw scores, labels (N,) are integers in 0..C-1,
every result is (N,). Computed in float32 at least, whatever precision the logits come in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y."""
    return F.cross_entropy(_wide(logits), labels, reduction="none")


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """CE(z, y) - log(1 - max_{k != y} p_k): also pushes down the strongest wrong class (MART, ICLR 2020).

    log(1 - p_k) is taken as a log-sum-exp over the classes other than k, which stays exact
    where p_k rounds to 1; MART's own code adds 1e-4 inside the logarithm instead.
    """
    logits = _wide(logits)
    rival = _without_label(logits, labels).argmax(1, keepdim=True)
    others = logits.scatter(1, rival, -torch.inf)
    log_one_minus_rival = others.logsumexp(1) - logits.logsumexp(1)
    return cross_entropy(logits, labels) - log_one_minus_rival


def kl_divergence(logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL(p, q) = sum_c p_c log(p_c / q_c) with p = softmax(logits), q = softmax(other_logits)."""
    log_p = _wide(logits).log_softmax(1)
    log_q = _wide(other_logits).log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def logit_pairing(logits: Tensor, other_logits: Tensor) -> Tensor:
    """mean_c (z_c - z'_c)^2 (arXiv 1803.06373; the mean over classes and the square follow the official code)."""
    return (_wide(logits) - _wide(other_logits)).square().mean(1)


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images (N, bool) are not given their label; logits that are not all finite give none, whatever is largest."""
    return (logits.argmax(1) != labels) | ~logits.isfinite().all(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y: positive exactly where the image is misclassified (the C&W objective, arXiv 1608.04644)."""
    logits = _wide(logits)
    return _without_label(logits, labels).amax(1) - logits.gather(1, labels[:, None])[:, 0]


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _without_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf)
