"""What an interrupted attack's journal is of: batches of another model are never taken for its own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from aalp.commands.loading import LoadedModel
from aalp.commands.resuming import journal_of
from aalp.data.sources import Source, load_source
from aalp.models.classifier import Classifier


def network(middle: nn.Module) -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), middle, nn.Linear(8, 10))).eval()


def folder_of(classifier: Classifier, source: Source, *about: object) -> Path:
    return journal_of(Path("evaluations"), LoadedModel(classifier, {"model": "code:factory"}), source, *about).folder


def test_the_journal_knows_weights_code_and_settings() -> None:
    source = load_source("digits")
    first = folder_of(network(nn.ReLU()), source, {"seed": 0})
    assert folder_of(network(nn.ReLU()), source, {"seed": 0}) == first
    others = [
        folder_of(network(nn.ReLU()), source, {"seed": 1}),
        folder_of(network(nn.Sigmoid()), source, {"seed": 0}),  # the same weights
        folder_of(network(nn.ReLU()).requires_grad_(False), load_source("digits"), {"seed": 0, "exact": True}),
    ]
    assert first not in others
    assert len(set(others)) == 3
    moved = network(nn.ReLU())
    moved.linear.bias.data[3] += 1e-6  # far below what an answer in a few digits shows
    assert folder_of(moved, source, {"seed": 0}) != first
