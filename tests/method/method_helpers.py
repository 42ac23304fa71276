"""Small classifiers whose numbers a test can work out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from aalp.models.classifier import Classifier


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
