from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aalp.training.averaging import Averager


def one_weight(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_the_average_follows_the_formula_by_hand() -> None:
    module = one_weight(1.0)
    averager = Averager(module, decay=0.15)
    # d is 1/10 at step 0; at step 1 it would be 2/11, and the decay's 0.15 is less.
    nn.init.constant_(module.weight, 2.0)
    averager.update(0)
    assert float(averager.shadow.weight) == pytest.approx(0.1 * 1.0 + 0.9 * 2.0)
    nn.init.constant_(module.weight, 4.0)
    averager.update(1)
    assert float(averager.shadow.weight) == pytest.approx(0.15 * 1.9 + 0.85 * 4.0)


def test_a_decay_of_0_copies_the_weights_exactly() -> None:
    module = nn.Linear(7, 5)
    averager = Averager(module, decay=0.0)
    nn.init.normal_(module.weight)
    averager.update(100)
    assert torch.equal(averager.shadow.weight, module.weight)


def test_tied_weights_are_averaged_once() -> None:
    module = nn.Sequential(one_weight(1.0), one_weight(1.0))
    module[1].weight = module[0].weight
    averager = Averager(module, decay=0.9)
    nn.init.constant_(module[0].weight, 2.0)
    averager.update(0)
    assert float(averager.shadow[1].weight) == pytest.approx(0.1 * 1.0 + 0.9 * 2.0)


def test_statistics_are_averaged_and_counters_are_copied() -> None:
    module = nn.BatchNorm1d(2)
    averager = Averager(module, decay=0.999)
    module(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    before = averager.shadow.running_mean.clone()
    averager.update(0)
    torch.testing.assert_close(averager.shadow.running_mean, 0.1 * before + 0.9 * module.running_mean)
    assert int(averager.shadow.num_batches_tracked) == int(module.num_batches_tracked) == 1


def test_what_no_step_moves_is_copied_where_it_is_infinite_too() -> None:
    module = one_weight(1.0)
    module.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    averager = Averager(module, decay=0.9)
    nn.init.constant_(module.weight, 2.0)
    averager.update(0)
    assert averager.shadow.mask.tolist() == [[0.0, -torch.inf], [0.0, 0.0]]
    assert averager.moving == [module.weight]


class Merging(nn.Linear):
    """As LoRA layers do: `eval` adds what is trained to the weight, once, and leaves it out from there on."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)
        nn.init.zeros_(self.weight.requires_grad_(False))
        self.trained, self.merged = nn.Parameter(torch.ones(1, 1)), False

    def train(self, mode: bool = True) -> Merging:
        if not mode and not self.merged:
            self.weight.data += self.trained.data
            self.merged = True
        return super().train(mode)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight if self.merged else self.weight + self.trained)


def test_the_average_of_a_layer_that_merges_in_eval_is_not_merged() -> None:
    module = Merging().train()
    averager = Averager(module, decay=0.0)
    nn.init.constant_(module.trained, 5.0)
    averager.update(0)
    assert float(averager.shadow(torch.ones(1, 1))) == 5.0


def test_the_average_is_a_frozen_copy_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    averager = Averager(module, decay=0.9)
    assert not any(part.training for part in averager.shadow.modules())
    assert not any(parameter.requires_grad for parameter in averager.shadow.parameters())
    assert all(part.training for part in module.modules())
    before = averager.shadow[0].weight.clone()
    nn.init.zeros_(module[0].weight)
    assert torch.equal(averager.shadow[0].weight, before)
