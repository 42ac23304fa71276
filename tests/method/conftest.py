"""Networks and images that several tests of attacks share."""

from __future__ import annotations

import pytest
import torch
from method_helpers import seeded
from torch import nn

from aalp.models.classifier import Classifier


@pytest.fixture
def normed_classifier():
    """BatchNorm and dropout, both of which an attack could disturb."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, 3)
        )
    return Classifier(network)


@pytest.fixture
def grey():
    """Two images of four pixels in the middle of the range, one of each class."""
    return torch.full((2, 1, 1, 4), 0.5), torch.tensor([0, 1])


@pytest.fixture
def noise_images():
    return torch.rand(6, 1, 8, 8, generator=seeded(7)), torch.tensor([0, 1, 2, 0, 1, 2])
