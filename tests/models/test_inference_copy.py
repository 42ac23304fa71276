from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from aalp.models.catalog import build
from aalp.models.inference_copy import Shift, folded, in_bfloat16


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in network.modules())


def moved(network: nn.Module) -> nn.Module:
    """With statistics and factors that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                assert values is not None
                values.data.uniform_(0.5, 2, generator=generator)
    return network


def test_folding_keeps_logits_and_gradients_and_the_network_itself() -> None:
    torch.manual_seed(0)
    network = moved(build("thin-resnet", 5, (3, 8, 8)).network).train()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    copy = folded(network, images.detach())
    assert network.training
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())
    # Each block's second one follows a convolution, the first one's ReLU goes into convolutions; the last goes into the head.
    assert (norms(network), norms(copy)) == (9, 1)
    network.eval()
    ours, theirs = copy(images), network(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    (one,), (other,) = (torch.autograd.grad(logits.logsumexp(1).sum(), images) for logits in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_a_linear_is_folded_by_hand() -> None:
    """y = 3 x + 1 through (y - 2) / sqrt(4) * 5 + 7 is 7.5 x + 4.5."""
    linear, norm = nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)
    for values, number in (
        (linear.weight, 3.0),
        (linear.bias, 1.0),
        (norm.running_mean, 2.0),
        (norm.running_var, 4.0),
        (norm.weight, 5.0),
        (norm.bias, 7.0),
    ):
        assert values is not None
        values.data.fill_(number)
    copy = folded(nn.Sequential(linear, norm), torch.tensor([[1.0], [2.0]]))
    assert norms(copy) == 0
    assert copy(torch.tensor([[2.0]])).item() == pytest.approx(19.5)


class Ahead(nn.Module):
    """A norm that follows no convolution, a ReLU after it, and what takes that."""

    def __init__(self, relu: Callable[[Tensor], Tensor], after: Callable[[nn.Module, Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self.norm, self.relu, self.after = nn.BatchNorm2d(4), relu, after
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1, groups=groups), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self, self.relu(self.norm(images))).flatten(1)


def both(network: Any, maps: Tensor) -> Tensor:
    logits: Tensor = network.one(maps) + network.other(maps)
    return logits


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "function": functional.relu,
    "torch": torch.relu,
    "method": lambda maps: maps.relu(),
    "in place": lambda maps: maps.relu_(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_shift_adds_its_number_to_each_map_in_whatever_layout(layout: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    by, maps = torch.randn(16), torch.randn(2, 16, 3, 5).to(dtype).contiguous(memory_format=layout)
    shifted = Shift(by)(maps)
    assert shifted.dtype == dtype
    assert shifted.is_contiguous(memory_format=layout)
    assert torch.equal(shifted, maps + by.to(dtype).view(16, 1, 1))


@pytest.mark.parametrize("relu", RELUS)
def test_a_norm_before_a_relu_leaves_its_scale_to_all_convolutions_after_it(relu: str) -> None:
    torch.manual_seed(0)
    network, images = moved(Ahead(RELUS[relu], both)), torch.randn(3, 4, 5, 5)
    copy = folded(network, images)
    assert norms(copy) == 0
    torch.testing.assert_close(copy(images), network.eval()(images))


KEEPING: dict[str, nn.Module] = {
    "another activation": Ahead(functional.gelu, both),
    "seen before the convolution": Ahead(functional.relu, lambda network, maps: both(network, maps) + maps),
    "a convolution in groups": Ahead(functional.relu, both, groups=2),
    "a convolution of other maps, too": Ahead(
        functional.relu, lambda network, maps: both(network, maps) + network.one(maps * 2)
    ),
    "no convolution": Ahead(functional.relu, lambda _network, maps: maps),
}


@pytest.mark.parametrize("name", KEEPING)
def test_a_norm_whose_scale_would_reach_something_else_is_left(name: str) -> None:
    torch.manual_seed(0)
    network, images = moved(KEEPING[name]), torch.randn(3, 4, 5, 5)
    copy = folded(network, images)
    assert norms(copy) == 1
    torch.testing.assert_close(copy(images), network.eval()(images))


def test_a_norm_with_a_negative_scale_is_left() -> None:
    torch.manual_seed(0)
    network, images = Ahead(functional.relu, both), torch.randn(3, 4, 5, 5)
    moved(network)
    network.norm.weight.data[2] = -1.0
    assert norms(folded(network, images)) == 1


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        return values.sign()

    @staticmethod
    def backward(_context: object, *slopes: Tensor) -> Tensor:
        return slopes[0]


def test_a_network_whose_traced_copy_has_another_gradient_is_copied_as_it_is() -> None:
    """Straight through a sign: traced, the logits are the same, and no gradient is left."""

    class Binary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

        def forward(self, images: Tensor) -> Tensor:
            return _Passing.apply(self.norm(self.conv(images))).mean((2, 3))

    torch.manual_seed(0)
    network, images = moved(Binary()), torch.randn(3, 1, 5, 5, requires_grad=True)
    copy = folded(network, images.detach())
    assert norms(copy) == 1
    (one,), (other,) = (torch.autograd.grad(logits[:, 0].sum(), images) for logits in (copy(images), network.eval()(images)))
    torch.testing.assert_close(one, other)
    assert one.abs().amax() > 0


def test_a_network_that_takes_gradients_of_its_own_runs_without_any_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    """As one that purifies its input does: tracing loses `enable_grad`, and the copy fell over where nothing else wants one."""

    class Purifying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            with torch.enable_grad():
                inside = images.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.layer(inside).logsumexp(1).sum(), inside)
            return self.layer(images + 0.1 * slope.sign())

    torch.manual_seed(0)
    network, images = Purifying(), torch.rand(2, 4)
    copy = folded(network, images)
    with torch.no_grad():
        torch.testing.assert_close(copy(images), network(images))
    assert capfd.readouterr().err == ""


class Shared(nn.Module):
    """One convolution, used with and without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.norm(self.layer(images)))


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.layer(images + torch.rand(images.shape)))


class Branching(Random):
    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.layer(images)) if images.sum() > 0 else images


@pytest.mark.parametrize("network", [Shared(), Random(), Branching()], ids=["shared", "random", "branching"])
def test_what_cannot_be_folded_is_left_as_it_is(network: nn.Module) -> None:
    images = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    assert norms(folded(moved(network), images)) == 1


def test_bfloat16_leaves_batchnorm_in_float32() -> None:
    network = in_bfloat16(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
    assert network[0].weight.dtype == torch.bfloat16  # type: ignore[index]
    assert network[1].running_var.dtype == torch.float32  # type: ignore[index]


def test_a_network_that_keeps_its_last_activations_is_copied() -> None:
    class Keeping(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            self.kept = super().forward(images)
            return self.kept

    network, images = Keeping(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
    network(images)  # with gradients on: torch does not copy what hangs on a graph
    torch.testing.assert_close(folded(network, images)(images), network(images))
