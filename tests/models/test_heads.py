"""Finding the layer that gives the logits, replacing it, and putting its classes in another order."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from aalp.errors import ModelError
from aalp.method.contributions import contributions
from aalp.models.classifier import Classifier
from aalp.models.heads import class_order, find_head, is_head, reorder_head, replace_head


def pooled(*head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *head)


def test_the_last_linear_comes_before_any_convolution() -> None:
    assert find_head(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 6))) == "3"
    assert find_head(nn.Sequential(nn.Linear(4, 5), nn.Conv2d(3, 4, 1))) == "0"
    assert find_head(pooled(nn.Conv2d(4, 5, 1), nn.Flatten())) == "3"
    assert not is_head(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ModelError, match=r"Sequential has no torch\.nn\.Linear"):
        find_head(pooled(nn.Conv2d(4, 5, 3)))


def test_a_convolution_on_pooled_features_is_a_linear_layer_by_hand() -> None:
    network = pooled(nn.Conv2d(4, 2, 1), nn.Flatten())
    with torch.no_grad():
        network[3].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, -1.0, 1.0, 0.5]])[:, :, None, None])
        network[3].bias.copy_(torch.tensor([0.5, -0.5]))
    classifier = Classifier(network).eval()
    # 1 + 4 + 9 + 16 + 0.5, and with the second feature dropped 4 less; 0 - 2 + 3 + 2 - 0.5, and 2 more.
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(classifier.head(features), torch.tensor([[30.5, 2.5]]))
    masked = classifier.head(features, torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    torch.testing.assert_close(masked, torch.tensor([[26.5, 4.5]]))
    torch.testing.assert_close(
        contributions(features, classifier.head_weight, torch.tensor([0])), torch.tensor([[1.0, 4.0, 9.0, 16.0]])
    )
    images = torch.rand(3, 3, 8, 8)
    assert classifier.features(images).shape == (3, 4) == (3, classifier.num_features)
    torch.testing.assert_close(classifier.head(classifier.features(images)), network(images))


def test_a_convolutional_head_of_timm_is_found() -> None:
    network = timm.create_model("resnetv2_50", num_classes=5, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), stem_chs=8)
    classifier = Classifier(network).eval()
    assert classifier.head_name == "head.fc"
    assert isinstance(classifier.linear, nn.Conv2d)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(classifier.head(classifier.features(images)), classifier(images))


def test_a_convolution_before_the_pooling_is_refused_in_one_line() -> None:
    # SqueezeNet's: a ReLU and the pooling come after it, so that no feature adds to a logit by itself.
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match=r"not what the network's last Conv2d '1' gives"):
        Classifier(network)(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("head", [nn.Linear(4, 7), nn.Linear(4, 7, bias=False)])
def test_a_replaced_head_has_the_same_input_and_fresh_weights(head: nn.Linear) -> None:
    network = pooled(nn.Flatten(), head)
    body = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("4.")}
    fresh = replace_head(network, 3)
    assert fresh is network
    assert network[4].weight.shape == (3, 4)
    assert (network[4].bias is None) == (head.bias is None)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in body.items())


def test_a_network_that_is_its_head_is_replaced_as_a_whole() -> None:
    assert replace_head(nn.Linear(4, 7), 3).weight.shape == (3, 4)


@pytest.mark.parametrize(
    ("own", "wanted", "order"),
    [
        (("cat", "dog"), ("cat", "dog"), [0, 1]),
        (("dog", "Cat"), ("cat", "dog"), [1, 0]),
        (("great white shark", "tench"), ("tench", "great_white-shark"), [1, 0]),
        (("A", "a"), ("A", "a"), [0, 1]),
        (("a", "b", "A"), ("A", "a", "b"), [2, 0, 1]),
        (("A", "a", "b"), ("A", "a", "B"), None),
        (("T shirt", "T-shirt"), ("T-shirt", "T shirt"), [1, 0]),
        (("crane", "cat", "crane"), ("crane", "cat", "crane"), [0, 1, 2]),
        (("crane", "cat", "crane"), ("crane", "crane", "cat"), None),
        (("cat", "dog"), ("cat", "cow"), None),
        (("cat", "dog"), ("cat", "cat"), None),
        (("cat", "dog", "cow"), ("cat", "dog"), None),
        (None, ("cat", "dog"), None),
    ],
)
def test_classes_are_matched_by_name(own, wanted, order) -> None:
    assert class_order(own, wanted) == order


def test_a_reordered_head_gives_the_logits_in_the_new_order() -> None:
    head = nn.Linear(2, 3)
    images = torch.rand(4, 2)
    before = head(images)
    reorder_head(head, [2, 0, 1])
    torch.testing.assert_close(head(images), before[:, [2, 0, 1]])
