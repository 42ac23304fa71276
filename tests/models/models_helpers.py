"""What several tests of models build."""

from __future__ import annotations

from torch import nn


def mlp(*after, inputs=768, hidden=6, classes=3):
    """Flatten, a hidden layer, a head named `3`, and what comes after it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes), *after)
