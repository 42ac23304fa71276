"""Contributions of features to a logit, and how concentrated they are."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from method_helpers import seeded
from torch import nn

from aalp.errors import ModelError
from aalp.method.contributions import concentration_n, contributions, effective_number, gini, layer_contributions
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.models.small_cnn import SmallCNN


def test_contributions_by_hand():
    features = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 1.0]])
    weight = torch.tensor([[1.0, -1.0, 0.5], [2.0, 3.0, -2.0]])
    # Image 0 to class 1: 1 * 2, 2 * 3, 3 * -2. Image 1 to class 0: 4 * 1, 0 * -1, 1 * 0.5.
    expected = torch.tensor([[2.0, 6.0, -6.0], [4.0, 0.0, 0.5]])
    assert torch.equal(contributions(features, weight, torch.tensor([1, 0])), expected)


@given(
    images=st.integers(1, 6),
    features=st.integers(1, 40),
    classes=st.integers(1, 7),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_contributions_and_bias_add_up_to_the_logit(images, features, classes, size, seed):
    random = seeded(seed)
    h, weight, bias = (
        torch.randn(*shape, generator=random, dtype=torch.float64) * size
        for shape in ((images, features), (classes, features), (classes,))
    )
    targets = torch.randint(classes, (images,), generator=random)
    logits = (h @ weight.T + bias).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(contributions(h, weight, targets).sum(1) + bias[targets], logits)


@pytest.mark.parametrize(
    "network",
    [
        lambda: SmallCNN(10, (3, 32, 32)),
        lambda: thin_resnet(10, 3),
        lambda: torchvision.models.resnet18(weights=None, num_classes=10),
        lambda: torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=10),
    ],
    ids=["small-cnn", "thin-resnet", "resnet18", "shufflenet"],
)
def test_contributions_and_bias_add_up_to_the_logit_of_real_networks(network):
    torch.manual_seed(0)
    classifier = Classifier(network(), mean=[0.5] * 3, std=[0.25] * 3).eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        logits = classifier(images)
        features = classifier.features(images)
        # To every class, not only to the predicted one.
        for target in range(10):
            targets = torch.full((3,), target)
            parts = contributions(features, classifier.head_weight, targets)
            total = parts.sum(1) + classifier.linear.bias[targets]
            torch.testing.assert_close(total, logits[:, target], atol=1e-4, rtol=1e-4)


def test_contributions_are_gradient_times_activation():
    features = torch.rand(4, 6, requires_grad=True)
    head, targets = nn.Linear(6, 3), torch.tensor([0, 2, 1, 2])
    (gradient,) = torch.autograd.grad(head(features).gather(1, targets[:, None]).sum(), features)
    torch.testing.assert_close(contributions(features, head.weight, targets), gradient * features)


@pytest.mark.parametrize(
    ("mass", "number"),
    # Positive: 5, 3, 1, 1, together 10. 5 carries half; 5 + 3 carries 0.8; 5 + 3 + 1 carries 0.9; 0.91 asks for all four.
    [(0.0, 0), (0.3, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.9, 3), (0.91, 4), (1.0, 4)],
)
def test_the_fewest_features_by_hand(mass, number):
    assert concentration_n(torch.tensor([[1.0, -7.0, 5.0, 0.0, 3.0, 1.0]]), mass).tolist() == [number]


@pytest.mark.parametrize(
    ("values", "n90", "effective", "gini_coefficient"),
    [
        # n90: 5 + 3 + 1 = 9 of 10. (5 + 3 + 1 + 1)^2 / (25 + 9 + 1 + 1) = 100 / 36. Gini: differences of all pairs of
        # (0, 1, 1, 3, 5), 1+1+3+5 + 0+2+4 + 2+4 + 2 = 24, over the number of features times the sum, 5 * 10.
        ([5.0, 3.0, 1.0, 1.0, -7.0], 3, 100 / 36, 0.48),
        # Differences of all pairs of (0, 0, 1, 3): 0+1+3 + 1+3 + 2 = 10, over 4 * 4; 4^2 / (1 + 9) = 1.6.
        ([0.0, 1.0, -2.0, 3.0], 2, 1.6, 0.625),
        # One feature does it all: Gini (D - 1) / D.
        ([0.0, 0.0, 0.5, -0.1], 1, 1.0, 0.75),
        # All alike: nine of ten carry 90 %.
        ([0.1] * 10, 9, 10.0, 0.0),
        # Nothing positive measures 0.
        ([-1.0, 0.0, -2.0], 0, 0.0, 0.0),
        ([0.0, 0.0], 0, 0.0, 0.0),
    ],
)
def test_concentration_by_hand(values, n90, effective, gini_coefficient):
    row = torch.tensor([values])
    torch.testing.assert_close(concentration_n(row), torch.tensor([float(n90)]))
    torch.testing.assert_close(effective_number(row), torch.tensor([effective]))
    torch.testing.assert_close(gini(row), torch.tensor([gini_coefficient]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_concentration_is_that_of_the_shares_however_large_contributions_are(scale):
    row = torch.tensor([[3.0, 2.0, 2.0, 1.0, -5.0, 0.0]])
    for measure in (effective_number, gini):
        torch.testing.assert_close(measure(row * scale), measure(row))


@pytest.mark.parametrize("measure", [concentration_n, effective_number, gini])
def test_concentration_knows_neither_order_nor_scale_nor_negative_parts(measure):
    rows = torch.randn(5, 30, generator=seeded(), dtype=torch.float64)
    value = measure(rows)
    assert value.shape == (5,)
    torch.testing.assert_close(measure(rows[:, torch.randperm(30, generator=seeded(1))]), value)
    torch.testing.assert_close(measure(rows * 1000), value)
    torch.testing.assert_close(measure(rows.clamp_min(0)), value)


@pytest.mark.parametrize(("measure", "sign"), [(concentration_n, 1), (effective_number, 1), (gini, -1)])
def test_fewer_high_contributions_measure_as_more_concentrated(measure, sign):
    rows = torch.rand(50, 30, generator=seeded())
    # Powers make the large ones larger against the small ones.
    assert (sign * measure(rows**4) < sign * measure(rows)).all()


@pytest.fixture
def two_layers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_contributions_of_the_feature_layer_are_the_closed_form(two_layers):
    images, targets = torch.rand(5, 4), torch.tensor([0, 1, 2, 1, 0])
    features = two_layers[:2](images)
    expected = contributions(features, two_layers[2].weight, targets)
    torch.testing.assert_close(layer_contributions(two_layers, "1", images, targets), expected)


def test_contributions_of_a_layer_below_a_kink_by_hand():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        network[2].weight.copy_(torch.tensor([[2.0, 5.0], [3.0, 7.0]]))
    # (1, 2) -> (3, -1) -> (3, 0): to class 1 the first unit gives 3 * 3, and the second is off.
    # (2, 1) -> (3, 1) -> (3, 1): to class 0 they give 2 * 3 and 5 * 1.
    result = layer_contributions(network, "0", torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([1, 0]))
    torch.testing.assert_close(result, torch.tensor([[9.0, 0.0], [6.0, 5.0]]))


def test_layer_contributions_leave_the_network_as_it_was():
    network = thin_resnet(4, 1).train()
    network.norm.eval()
    before = {name: module.training for name, module in network.named_modules()}
    images = torch.rand(3, 1, 8, 8)
    result = layer_contributions(network, "stages.2", images, torch.tensor([0, 1, 2]))
    assert result.shape == (3, 64, 2, 2)
    assert not result.requires_grad
    assert {name: module.training for name, module in network.named_modules()} == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_layer_contributions_work_where_gradients_are_switched_off(two_layers):
    images, targets = torch.rand(2, 4), torch.tensor([0, 1])
    with torch.no_grad():
        quiet = layer_contributions(two_layers, "1", images, targets)
    assert quiet.abs().sum() > 0
    torch.testing.assert_close(quiet, layer_contributions(two_layers, "1", images, targets))


class TwoHeads(nn.Module):
    """Logits beside a layer that runs without leading to them, and one that does not run."""

    def __init__(self, side=None):
        super().__init__()
        self.body, self.side, self.unused, self.logits = (
            nn.Linear(4, 6),
            side or nn.Linear(6, 2),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, images):
        features = self.body(images)
        self.side(features)
        return self.logits(features)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("bodi", r"unknown layer 'bodi': did you mean 'body'\? known are body, logits, side, unused"),
        ("unused", r"layer 'unused' did not run: name a layer that the network's forward uses"),
        ("side", r"the logits do not depend on layer 'side': name a layer on the way to them"),
    ],
)
def test_a_layer_that_gives_no_contributions_is_refused(layer, message, frozen):
    network = TwoHeads().requires_grad_(not frozen)
    with pytest.raises(ModelError, match=message):
        layer_contributions(network, layer, torch.rand(2, 4), torch.tensor([0, 1]))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_layer_that_gives_no_tensor_is_refused():
    network = torchvision.models.VisionTransformer(8, 4, 1, 1, 8, 8, num_classes=3)
    layer = "encoder.layers.encoder_layer_0.self_attention"
    with pytest.raises(ModelError, match=r"self_attention.*tuple"):
        layer_contributions(network, layer, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_may_be_followed_by_a_step_in_place(inplace):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 3))
    images, targets = torch.rand(5, 4), torch.tensor([0, 1, 2, 1, 0])
    before = network[0](images).detach()
    # Gradient of the ReLU: 1 where the unit is on.
    expected = before * (before > 0) * network[2].weight[targets]
    torch.testing.assert_close(layer_contributions(network, "0", images, targets), expected)
