"""Adaptive sample weights: how much each image's pairing term counts against its classification term.

The paper (arXiv 2005.11904) says that the pairing target does not suit every sample and that
weights should balance the two losses; the rules below are ours (see docs/method.md).

Shapes: N images, C classes; logits (N, C) of the clean and of the adversarial image, labels (N,);
weights (N,) are >= 0 and carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.errors import OptionError, check_at_least_zero

Rule = Literal["uniform", "confidence", "correct", "agreement"]
RULES: tuple[str, ...] = get_args(Rule)


@dataclass(frozen=True)
class SampleWeights:
    """How the pairing term of each sample is weighted."""

    rule: Rule = "confidence"
    """uniform: 1. confidence: p_y(x)^gamma at batch mean 1. correct: 1 if the clean image is classified right, else 0. \
agreement: cosine of the two losses' gradients, 0 where they conflict."""

    gamma: float = 1.0
    """Exponent of the confidence rule, >= 0."""

    boost: float = 0.0
    """kappa: the classification term of a sample with weight w is multiplied by 1 + kappa * max(0, 1 - w), kappa >= 0."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise OptionError(f"weights rule is '{self.rule}': choose {', '.join(RULES)}")
        for name in ("gamma", "boost"):
            check_at_least_zero(f"weights {name}", getattr(self, name))


@torch.no_grad()
def sample_weights(options: SampleWeights, clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """The weight (N,) of each sample's pairing term under the chosen rule."""
    clean_logits, adversarial_logits = clean_logits.float(), adversarial_logits.float()
    if options.rule == "uniform":
        return torch.ones_like(clean_logits[:, 0])
    if options.rule == "correct":
        return (clean_logits.argmax(1) == labels).to(clean_logits.dtype)
    if options.rule == "agreement":
        return conflict_cosine(clean_logits, adversarial_logits, labels).clamp_min(0)
    confidence = clean_logits.softmax(1).gather(1, labels[:, None])[:, 0].pow(options.gamma)
    return confidence / confidence.mean().clamp_min(torch.finfo(confidence.dtype).tiny)


def conflict_cosine(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> Tensor:
    """cos(g_ce, g_pair) (N,) of the two losses' gradients at the adversarial logits z'; below 0 they conflict.

    g_ce = p' - onehot(y) is the gradient of CE(z', y); g_pair = z' - z that of the pairing term, up to scale.
    0 where the logits of both images are the same.
    """
    adversarial_logits = adversarial_logits.float()
    # Not `one_hot`: it looks at the labels first, and the host waits.
    classes = torch.arange(adversarial_logits.shape[1], device=labels.device)
    own = labels[:, None] == classes
    # g_ce / (1 - p'_y): the softmax of the other classes, and -1 at y. Where a network is sure, p'_y rounds to 1, and
    # p' - onehot(y) would lose the label, by far its largest entry.
    classification = adversarial_logits.masked_fill(own, -torch.inf).softmax(1) - own.float()
    return F.cosine_similarity(classification, adversarial_logits - clean_logits.float(), dim=1)


def classification_boost(options: SampleWeights, weights: Tensor) -> Tensor:
    """The factor (N,) of each sample's classification term: 1 + kappa * max(0, 1 - w)."""
    return 1.0 + options.boost * (1.0 - weights).clamp_min(0)
