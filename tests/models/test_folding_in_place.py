"""A folded network is the same function, and what folding touches is as it was afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from aalp.method.pgd import perturb
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier
from aalp.models.folding_in_place import check_folding, foldable, foldable_ahead, folded_norms
from aalp.models.preact_resnet import PreActBlock, thin_resnet


def sequential(bias: bool = True, affine: bool = True) -> nn.Sequential:
    norm = nn.BatchNorm2d(4, affine=affine)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "thin-resnet": (lambda: thin_resnet(5, 3), 4 + 3),  # of one block's first norm a scale is negative
    "sequential": (sequential, 1),
    "no bias": (lambda: sequential(bias=False), 1),
    "not affine": (lambda: sequential(affine=False), 1),
    "timm basic": (lambda: timm.create_model("resnet10t", num_classes=5), 8 + 3 + 2),
    "torchvision basic": (lambda: torchvision.models.resnet18(num_classes=5), 17 + 3),
    "torchvision bottleneck": (lambda: torchvision.models.resnet50(num_classes=5), 49 + 4),
}


def unsettled(network: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and scales that are not those of the start, some of them negative."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.affine:
                module.weight.data.normal_(0.8, 0.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return network.double().eval()


class Tapped(nn.Module):
    """Runs the layers of a Sequential by itself, and uses what comes after the convolution as well as after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.logits = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        convolved = self.body[0](images)
        pooled = [maps.mean((2, 3)) for maps in (convolved, self.body[2](self.body[1](convolved)))]
        logits: Tensor = self.logits(torch.cat(pooled, 1))
        return logits


def test_a_network_whose_pairs_are_used_in_between_is_not_folded() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    for network, pairs in ((Tapped(), 0), (sequential(), 1)):
        classifier = Classifier(network).train()
        before = {name: value.clone() for name, value in classifier.state_dict().items()}
        check_folding(classifier, images)
        assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
        assert classifier.training
        for one in (classifier, copy.deepcopy(classifier)):
            with folded_norms(one) as count:
                assert count == pairs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_gives_the_same_outputs_and_gradients(name: str) -> None:
    make, pairs = NETWORKS[name]
    torch.manual_seed(0)
    network = unsettled(make())
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    before = network(images)
    (gradient,) = torch.autograd.grad(before.square().sum(), images)
    with folded_norms(network) as count:
        inside = network(images)
        (folded_gradient,) = torch.autograd.grad(inside.square().sum(), images)
    assert count == pairs
    torch.testing.assert_close(inside, before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded_gradient, gradient, rtol=1e-9, atol=1e-9)


def test_a_convolution_and_its_norm_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    conv, norm = network[0], network[1]
    with torch.no_grad():
        for value, parameter in ((3.0, conv.weight), (1.0, conv.bias), (2.0, norm.weight), (5.0, norm.bias)):
            parameter.fill_(value)
        norm.running_mean.fill_(4.0)
        norm.running_var.fill_(16.0)
        with folded_norms(network):
            # 2 (3 x + 1 - 4) / 4 + 5 = 1.5 x + 3.5
            assert (float(conv.weight), float(conv.bias)) == (1.5, 3.5)
            assert float(network(torch.full((1, 1, 1, 1), 2.0))) == 6.5


def test_a_norm_leaves_its_scale_to_the_convolutions_after_the_relu_by_hand() -> None:
    block = PreActBlock(1, 2, 1).eval()
    assert block.shortcut is not None
    with torch.no_grad():
        for value, parameter in ((2.0, block.norm1.weight), (5.0, block.norm1.bias), (3.0, block.shortcut.weight)):
            parameter.fill_(value)
        block.norm1.eps = 0.0
        block.norm1.running_mean.fill_(4.0)
        block.norm1.running_var.fill_(16.0)
        conv1 = block.conv1.weight * block.norm2.weight.view(-1, 1, 1, 1) / (1 + block.norm2.eps) ** 0.5
        with folded_norms(block) as count:
            assert count == 2
            # 2 (x - 4) / 4 + 5 = 0.5 (x + 6)
            assert torch.equal(block.norm1(torch.full((1, 1, 1, 1), -2.0)), torch.full((1, 1, 1, 1), 4.0))
            assert torch.equal(block.shortcut.weight, torch.full((2, 1, 1, 1), 1.5))
            torch.testing.assert_close(block.conv1.weight.detach(), 0.5 * conv1)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-6])
def test_a_norm_with_a_scale_that_does_not_come_out_of_a_relu_keeps_it(scale: float) -> None:
    block = PreActBlock(3, 3, 1).eval()
    block.norm1.weight.data[1] = scale
    assert foldable_ahead(block) == []
    block.norm1.weight.data[1] = 1.0
    assert len(foldable_ahead(block)) == 1


def test_a_norm_whose_convolution_is_looked_at_or_used_elsewhere_keeps_its_scale() -> None:
    torch.manual_seed(0)
    looked_at, twice = PreActBlock(3, 3, 1).eval(), nn.Sequential(PreActBlock(3, 3, 1), PreActBlock(3, 3, 1)).eval()
    looked_at.conv1.register_forward_pre_hook(lambda _module, inputs: inputs)
    twice[1].conv1 = twice[0].conv1
    assert foldable_ahead(looked_at) == foldable_ahead(twice) == []


def test_bfloat16_maps_stay_bfloat16_behind_a_folded_norm() -> None:
    block = PreActBlock(3, 3, 1).eval()
    with folded_norms(block):
        assert block.norm1(torch.rand(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_everything_is_as_it_was_afterwards_also_after_an_error() -> None:
    network = thin_resnet(3, 1)
    parameters, state = list(network.parameters()), {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), folded_norms(network):
        raise RuntimeError("stop")
    assert all(one is other for one, other in zip(parameters, network.parameters(), strict=True))
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_an_attack_on_a_folded_network_finds_the_same_images() -> None:
    torch.manual_seed(0)
    classifier = Classifier(unsettled(thin_resnet(3, 1)))
    images, labels = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    plain = perturb(classifier, images, labels, Linf(0.1), 5, random_start=0.0)
    with folded_norms(classifier):
        folded = perturb(classifier, images, labels, Linf(0.1), 5, random_start=0.0)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-9)


class Own(nn.Module):
    """A network of somebody else: its parts are named as ours, and run in an order that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm2, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)


def shared() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), norm)


def hooked() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return network


def parametrised() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


class Subclass(nn.Sequential):
    """May do anything with its parts."""


UNKNOWN = {
    "own": Own,
    "shared": shared,
    "hooked": hooked,
    "parametrised": parametrised,
    "no statistics": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "not adjacent": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)),
    "subclass": lambda: Subclass(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_to_be_a_plain_pair_is_left_alone(name: str) -> None:
    assert foldable(UNKNOWN[name]()) == []
