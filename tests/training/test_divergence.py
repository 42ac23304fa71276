"""A training whose numbers break: it ends in one line, and what it leaves behind is whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aalp.errors import DivergedError
from aalp.method.aalp import AALP
from aalp.method.objectives import AT, Standard
from aalp.models.classifier import Classifier
from aalp.store.checkpoint import read_tensors
from aalp.training.loop import fit
from aalp.training.plan import Fit

MakeFit = Callable[..., Fit]


class Fragile(nn.Module):
    """A network whose output is not a number from training pass number `breaks_at` on."""

    def __init__(self, breaks_at: int) -> None:
        super().__init__()
        self.breaks_at = breaks_at
        self.passes = 0
        self.flatten = nn.Flatten()
        self.norm = nn.BatchNorm1d(64)
        self.logits = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        self.passes += self.training
        features = self.flatten(images)
        return self.logits(self.norm(features * torch.nan if self.passes > self.breaks_at and self.training else features))


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_the_state_before_it(fit_plan: MakeFit) -> None:
    plan = fit_plan(classifier=Classifier(Fragile(breaks_at=5)), objective=AT())
    with pytest.raises(DivergedError) as caught:
        fit(plan)
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert "the loss is nan at step 5" in message
    assert str(plan.run.state(5)) in message
    assert "--training.lr" in message
    assert "\n" not in message
    tensors, about = read_tensors(plan.run.state(5))
    assert about["progress"]["step"] == 5
    assert int(tensors["model.network.norm.num_batches_tracked"]) == 5
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert read_tensors(plan.run.weights("last"))[1]["epoch"] == 1


def test_the_terms_of_a_loss_that_is_not_finite_are_named(fit_plan: MakeFit) -> None:
    plan = fit_plan(classifier=Classifier(Fragile(breaks_at=2)), objective=AALP(dropout=None))
    with pytest.raises(DivergedError, match=r"at step 2 \(classification nan, pairing nan"):
        fit(plan)


class BrokenGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


class FragileBackwards(Fragile):
    """The same with an output that is finite, and a gradient that is not."""

    def forward(self, images: Tensor) -> Tensor:
        self.passes += self.training
        logits: Tensor = self.logits(self.norm(self.flatten(images)))
        return BrokenGradient.apply(logits) if self.passes > self.breaks_at and self.training else logits


class FragileInstances(Fragile):
    """The same with statistics of another kind of norm."""

    def __init__(self, breaks_at: int) -> None:
        super().__init__(breaks_at)
        self.flatten = nn.Flatten(2)
        self.norm = nn.InstanceNorm1d(1, track_running_stats=True)

    def forward(self, images: Tensor) -> Tensor:
        self.passes += self.training
        features = self.flatten(images)
        normed = self.norm(features * torch.nan if self.passes > self.breaks_at and self.training else features)
        return self.logits(normed.flatten(1))


@pytest.mark.parametrize("breaks_at", [5, 7])
def test_a_finite_loss_with_a_broken_gradient_leaves_no_broken_weights(breaks_at: int, fit_plan: MakeFit) -> None:
    plan = fit_plan(classifier=Classifier(FragileBackwards(breaks_at)), objective=AT())
    with pytest.raises(DivergedError, match=r"weights are not finite any more after step \d: lower --training\.lr") as caught:
        fit(plan)
    newest = plan.run.states()[-1]
    assert str(newest) in str(caught.value)
    for path in (*plan.run.states(), *plan.run.path.glob("weights/*.safetensors")):
        tensors, _ = read_tensors(path)
        assert all(bool(torch.isfinite(value).all()) for value in tensors.values()), path


class Masked(nn.Module):
    """A network with an additive mask of an attention, of 0 and -inf, among its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.rows, self.logits = nn.Linear(8, 8), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1, 2)
        attention = (self.rows(rows) @ rows.mT + self.mask).softmax(-1)
        return self.logits((attention @ rows).flatten(1))


def test_infinities_that_a_network_keeps_are_no_divergence(fit_plan: MakeFit) -> None:
    plan = fit_plan(classifier=Classifier(Masked()), objective=AT())
    mask = plan.classifier.network.mask.clone()
    fit(plan)
    assert torch.equal(read_tensors(plan.run.weights("last"))[0]["network.mask"], mask)
    assert fit(plan, resume=True).step == 8


def test_statistics_of_any_norm_are_put_back_where_a_batch_broke_them(fit_plan: MakeFit) -> None:
    plan = fit_plan(classifier=Classifier(FragileInstances(breaks_at=5)), objective=Standard())
    with pytest.raises(DivergedError):
        fit(plan)
    tensors, _ = read_tensors(plan.run.state(5))
    assert bool(torch.isfinite(tensors["model.network.norm.running_var"]).all())


def test_weights_that_explode_are_never_the_ones_that_are_kept(fit_plan: MakeFit) -> None:
    plan = fit_plan(options={"lr": 1e30, "schedule": "step", "epochs": 3}, objective=Standard())
    with pytest.raises(DivergedError, match=r"lower --training\.lr"):
        fit(plan)
    for path in (*plan.run.states(), *plan.run.path.glob("weights/*.safetensors")):
        tensors, _ = read_tensors(path)
        assert all(bool(torch.isfinite(value).all()) for value in tensors.values()), path
