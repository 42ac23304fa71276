"""Contributions of deep layers against captum's gradient times activation."""

from __future__ import annotations

import pytest
import torch
import torchvision
from captum.attr import LayerGradientXActivation

from aalp.method.contributions import contributions, layer_contributions
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import PreActResNet


def preact_resnet():
    return PreActResNet(5, 3, widths=(8, 16, 24), blocks=2)


def resnet18():
    return torchvision.models.resnet18(weights=None, num_classes=5)


def build(make):
    """The network in float64, in evaluation mode, with BatchNorm statistics that do something; images and targets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make().double()
        images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
        network.train()(images)
        return network.eval(), images, torch.tensor([4, 0, 2])


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (preact_resnet, "stem"),
        (preact_resnet, "stages.2.conv1"),
        (preact_resnet, "stages.5.conv2"),
        (preact_resnet, "stages.5"),
        (preact_resnet, "norm"),
        (resnet18, "layer2.0.conv2"),
        (resnet18, "layer4.1.conv2"),
        (resnet18, "layer4"),
        (resnet18, "avgpool"),
        # What follows these two works in place: a ReLU and the addition of the shortcut.
        (resnet18, "bn1"),
        (resnet18, "layer4.1.bn2"),
    ],
)
def test_layer_contributions_are_captums_gradient_times_activation(make, layer):
    network, images, targets = build(make)
    ours = layer_contributions(network, layer, images, targets)
    captums = LayerGradientXActivation(network, network.get_submodule(layer)).attribute(images, target=targets)
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, captums.detach(), atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize(("make", "layer"), [(preact_resnet, "stages.5"), (resnet18, "layer4.1.conv2")])
def test_layer_contributions_through_a_classifier_are_captums_as_well(make, layer):
    network, images, targets = build(make)
    classifier = Classifier(network, mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3]).double()
    ours = layer_contributions(classifier, f"network.{layer}", images, targets)
    captums = LayerGradientXActivation(classifier, network.get_submodule(layer)).attribute(images, target=targets)
    torch.testing.assert_close(ours, captums.detach(), atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize(("make", "layer"), [(preact_resnet, "logits"), (resnet18, "fc")])
def test_the_closed_form_is_captums_attribution_to_the_head_input(make, layer):
    network, images, targets = build(make)
    classifier = Classifier(network)
    with torch.no_grad():
        ours = contributions(classifier.features(images), classifier.head_weight, targets)
    method = LayerGradientXActivation(network, network.get_submodule(layer))
    captums = method.attribute(images, target=targets, attribute_to_layer_input=True)
    torch.testing.assert_close(ours, captums.detach(), atol=1e-12, rtol=1e-8)
