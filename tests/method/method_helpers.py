"""Small classifiers whose numbers a test can work out by hand, and every objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from aalp.method.aalp import AALP
from aalp.method.objective_base import Objective
from aalp.method.objectives import ALP, AT, CLP, MART, OBJECTIVES, TRADES, Standard
from aalp.models.classifier import Classifier

# Two classes: the loss of label 0 rises along w_1 - w_0 = (1, -2, 4, -2), of label 1 along the opposite; that is 5 long.
TWO_CLASSES = [[1.0, 1.0, -2.0, 0.5], [2.0, -1.0, 2.0, -1.5]]
RISE = torch.tensor([1.0, -2.0, 4.0, -2.0])
# What each of the labels 0, 1 is pushed by, as images.
DIRECTIONS = torch.stack([RISE, -RISE])[:, None, None, :]


def linear_classifier(weight: Sequence[Sequence[float]], bias: Sequence[float] | None = None) -> Classifier:
    """Logits W x + b of the flattened image: its features are the pixels themselves."""
    rows = torch.tensor(weight)
    linear = nn.Linear(rows.shape[1], rows.shape[0])
    with torch.no_grad():
        linear.weight.copy_(rows)
        linear.bias.copy_(torch.zeros(len(rows)) if bias is None else torch.tensor(bias))
    return Classifier(nn.Sequential(nn.Flatten(), linear))


def pixels(*rows: Sequence[float]) -> torch.Tensor:
    """Images of shape (N, 1, 1, D), one row of pixels each."""
    return torch.tensor(rows)[:, None, None, :]


def smooth_classifier(features: int = 5, classes: int = 3, pixels: int = 6, seed: int = 0) -> Classifier:
    """A float64 network without kinks, so that finite differences can check its gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 8), nn.Tanh(), nn.Linear(8, features), nn.Softplus(), nn.Linear(features, classes)
        )
    return Classifier(network, mean=[0.5], std=[0.25]).double()


def seeded(seed: int = 0) -> torch.Generator:
    """A generator with a known seed."""
    return torch.Generator().manual_seed(seed)


# The classifier z = (ln 3 * first pixel, ln 3 * second pixel) of features that are the pixels. The clean image (1, 0)
# gets z = (ln 3, 0), p = (3/4, 1/4); the adversarial one (0, 0) gets z' = (0, 0), p' = (1/2, 1/2). Hence
#   CE(z, 0) = ln 4/3 = 0.287682    CE(z, 1) = ln 4 = 1.386294    CE(z', y) = ln 2 = 0.693147
#   pairing = ((ln 3)^2 + 0) / 2 = 0.603474
#   KL(p, p') = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812
LN3 = math.log(3)
HAND = linear_classifier([[LN3, 0.0], [0.0, LN3]])
CLEAN, ADVERSARIAL = pixels([1.0, 0.0], [1.0, 0.0]), pixels([0.0, 0.0], [0.0, 0.0])
LABELS = torch.tensor([0, 1])


def total_for(objective: Objective, label: int, **settings: Any) -> float:
    """The loss of the first pair, taken for `label`."""
    return objective(HAND, CLEAN[:1], ADVERSARIAL[:1], torch.tensor([label]), **settings).total.item()


constant_aalp = OBJECTIVES["aalp-no-schedule"][0]  # ALP's pairing weight and clean share throughout

ALL = {
    "standard": Standard(),
    "at": AT(),
    "alp": ALP(),
    "clp": CLP(),
    "trades": TRADES(),
    "mart": MART(),
    "aalp": AALP(),
    "aalp-kl": AALP(distance="kl", pairing_weight=6.0),
    "aalp-no-dropout": AALP(dropout=None),
    "aalp-no-weights": AALP(weights=None),
    "aalp-no-schedule": AALP(pairing_weight=0.5, pairing_ramp=0.0, clean_share=0.5, final_clean_share=0.5),
}
