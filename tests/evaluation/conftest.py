"""Digits classifiers that are trained well enough to be judged, once a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from aalp.data.sources import load_source
from aalp.data.split import as_float, channel_statistics
from aalp.method.aalp import AALP
from aalp.method.objective_base import Objective
from aalp.method.objectives import AT, TRADES, Standard
from aalp.method.pgd import perturb
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier

OBJECTIVES: dict[str, Objective] = {"standard": Standard(), "at": AT(), "trades": TRADES(), "aalp": AALP()}


@pytest.fixture(scope="session")
def trained() -> Callable[[str], Classifier]:
    """The digits classifier of an objective at Linf 0.2; clean epochs first would cost TRADES half of what it withstands."""
    done: dict[str, Classifier] = {}

    def get(name: str) -> Classifier:
        if name not in done:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                done[name] = _train(OBJECTIVES[name])
        return done[name]

    return get


def _network() -> nn.Sequential:
    """Robust on digits with a fifteenth of what a pass through the small CNN multiplies: audits make thousands of passes."""
    convolutions = nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 2 * 2, 64), nn.ReLU(), nn.Linear(64, 10))


def _train(objective: Objective, epochs: int = 16, rate: float = 5e-3) -> Classifier:
    split = load_source("digits").train
    images, labels = as_float(split.read(torch.arange(len(split)))), split.labels
    classifier = Classifier(_network(), *channel_statistics(split))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / epochs, epochs - 1)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            batch, truth = images[rows], labels[rows]
            adversarial = perturb(classifier, batch, truth, Linf(0.2), 5, loss=objective.inner, generator=generator)
            optimizer.zero_grad()
            objective(classifier, batch, adversarial, truth, progress=epoch / epochs, generator=generator).total.backward()
            optimizer.step()
        falling.step()
    return classifier.eval().requires_grad_(False)
