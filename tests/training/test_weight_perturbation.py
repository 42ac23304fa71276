from __future__ import annotations

import pytest
import torch
from torch import nn

from aalp.training.weight_perturbation import perturbed_weights


def parameters(*values: list[float] | list[list[float]]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(value)) for value in values]


def test_weights_move_along_their_gradient_by_a_share_of_their_norm_by_hand() -> None:
    weight, bias = parameters([[3.0, 4.0]], [5.0])
    with perturbed_weights([weight, bias], [torch.tensor([[0.0, 2.0]]), torch.tensor([1.0])], gamma=0.1):
        # |w| = 5 and g / |g| = (0, 1): a step of 0.1 * 5 along the second weight. Vectors stay.
        torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.5]]))
        assert bias.tolist() == [5.0]


def test_each_tensor_has_its_own_scale_by_hand() -> None:
    small, large = parameters([[0.1]], [[100.0]])
    with perturbed_weights([small, large], [torch.tensor([[1000.0]]), torch.tensor([[-1e-6]])], gamma=0.01):
        assert small.item() == pytest.approx(0.101)
        assert large.item() == pytest.approx(99.0)


def test_weights_come_back_exactly_also_after_an_error() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(7, 5))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    gradients = [torch.randn_like(parameter) for parameter in before]
    for error in (None, KeyboardInterrupt):
        try:
            with perturbed_weights(list(module.parameters()), gradients, gamma=0.3):
                assert not torch.equal(module[0].weight, before[0])
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert all(torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("gradient", [None, torch.zeros(1, 2)])
def test_weights_without_gradient_stay_where_they_are(gradient: torch.Tensor | None) -> None:
    (weight,) = parameters([[3.0, 4.0]])
    with perturbed_weights([weight], [gradient], gamma=0.1):
        assert weight.tolist() == [[3.0, 4.0]]
    assert weight.tolist() == [[3.0, 4.0]]


def test_the_gradient_inside_is_that_of_the_moved_weights() -> None:
    (weight,) = parameters([[3.0]])
    with perturbed_weights([weight], [torch.tensor([[1.0]])], gamma=0.5):
        weight.square().sum().backward()
    assert weight.item() == 3.0
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(2 * 4.5)
