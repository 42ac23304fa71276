"""Classifier: normalisation inside, features and head that make up the forward pass, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from models_helpers import mlp
from torch import nn

from aalp.errors import DataError, ModelError
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.models.small_cnn import SmallCNN

NETWORKS = {
    "small-cnn": lambda: SmallCNN(5, (3, 16, 16)),
    "thin-resnet": lambda: thin_resnet(5, 3),
    "torchvision resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=5),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5),
    "timm resnet": lambda: timm.create_model("test_resnet", num_classes=5),
    "timm vit": lambda: timm.create_model("test_vit", num_classes=5, img_size=16, patch_size=8),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_features_and_head_make_up_the_forward_pass(name, training, images):
    classifier = Classifier(NETWORKS[name](), mean=[0.5] * 3, std=[0.25] * 3).train(training)
    logits = classifier(images)
    features = classifier.features(images)
    assert features.shape == (4, classifier.num_features)
    assert logits.shape == (4, 5) == (4, classifier.num_classes)
    torch.testing.assert_close(classifier.head(features), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features @ classifier.head_weight.T + classifier.linear.bias, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(classifier.network((images - 0.5) / 0.25), logits, atol=1e-5, rtol=1e-5)


def test_a_network_may_be_the_linear_layer_itself():
    linear = nn.Linear(4, 3)
    classifier = Classifier(linear)
    images = torch.rand(2, 4)
    assert classifier.linear is linear
    assert torch.equal(classifier.features(images), images)
    assert torch.equal(classifier(images), linear(images))


def test_normalisation_by_hand():
    # (0.75 - 0.5) / 0.25 = 1 and (0.2 - 0.4) / 0.1 = -2.
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), mean=[0.5, 0.4], std=[0.25, 0.1])
    image = torch.tensor([0.75, 0.2])[None, :, None, None]
    torch.testing.assert_close(classifier.normalise(image).flatten(), torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(classifier.features(image), torch.tensor([[1.0, -2.0]]))


def test_one_mean_serves_all_channels_and_none_changes_nothing(images):
    alike = Classifier(mlp(), mean=[0.5], std=[0.25])
    torch.testing.assert_close(alike.normalise(images), (images - 0.5) * 4)
    assert torch.equal(Classifier(mlp()).normalise(images), images)


def test_a_mask_multiplies_the_features_by_hand():
    classifier = Classifier(nn.Linear(3, 2))
    with torch.no_grad():
        classifier.linear.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 1.0]]))
        classifier.linear.bias.copy_(torch.tensor([0.25, -0.25]))
    # (1, 2, 3) under (0, 2, 1) is (0, 4, 3): 0 + 8 + 9 + 0.25 and 0 + 2 + 3 - 0.25.
    logits = classifier.head(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 2.0, 1.0]]))
    torch.testing.assert_close(logits, torch.tensor([[17.25, 4.75]]))


def test_a_mask_of_ones_changes_nothing_and_a_mask_stays_an_argument(images):
    classifier = Classifier(NETWORKS["small-cnn"]())
    features = classifier.features(images)
    plain = classifier.head(features)
    assert torch.equal(classifier.head(features, torch.ones_like(features)), plain)
    assert not torch.equal(classifier.head(features, torch.zeros_like(features)), plain)
    assert torch.equal(classifier.head(features), plain)
    torch.testing.assert_close(classifier(images), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_classifier_works_in_the_precision_it_is_put_in(dtype, images):
    classifier = Classifier(NETWORKS["thin-resnet"](), mean=[0.5] * 3, std=[0.25] * 3).to(dtype).eval()
    images = images.to(dtype)
    features = classifier.features(images)
    # A float32 mask, as Guided Dropout makes it, does not widen the features.
    masked = classifier.head(features, torch.ones(4, classifier.num_features))
    assert classifier(images).dtype == features.dtype == masked.dtype == dtype
    torch.testing.assert_close(masked, classifier(images))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_mean_and_std_may_be_any_row_of_numbers(kind, images):
    listed, given = Classifier(mlp(), [0.5] * 3, [0.25] * 3), Classifier(mlp(), kind([0.5] * 3), kind([0.25] * 3))
    torch.testing.assert_close(given.normalise(images), listed.normalise(images))


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 4, 16, 16), (2, 16, 16, 3), (16,)])
def test_images_of_other_channels_than_the_mean_are_refused(shape):
    classifier = Classifier(mlp(), mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(DataError, match=r"do not have the 3 channels of the classifier's mean and std: pass images as"):
        classifier(torch.rand(shape))


def test_the_network_is_used_as_it_is(images):
    network = mlp()
    classifier = Classifier(network)
    assert classifier.network is network
    assert {id(p) for p in classifier.parameters()} == {id(p) for p in network.parameters()}
    classifier(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_normalisation_travels_with_the_weights(images):
    classifier = Classifier(mlp(), mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    other = Classifier(mlp(), mean=[0.0] * 3, std=[1.0] * 3)
    other.load_state_dict(classifier.state_dict())
    assert torch.equal(other(images), classifier(images))


def test_a_copy_has_features_of_its_own(images):
    classifier = Classifier(mlp())
    classifier(images)
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        twin.network[1].weight.mul_(2)
    assert not torch.equal(twin.features(images), classifier.features(images))
    torch.testing.assert_close(twin.head(twin.features(images)), twin(images))


@pytest.mark.parametrize("call", ["forward", "features"])
def test_the_gradient_reaches_the_images(call, images):
    classifier = Classifier(NETWORKS["small-cnn"](), mean=[0.5] * 3, std=[0.25] * 3)
    images.requires_grad_()
    (classifier(images) if call == "forward" else classifier.features(images)).square().sum().backward()
    assert (images.grad != 0).float().mean() > 0.5


def test_features_leave_no_hook_behind(images):
    classifier = Classifier(mlp())
    classifier.features(images)
    assert not classifier.linear._forward_hooks
    with pytest.raises(RuntimeError):
        classifier.features(torch.rand(2, 3, 5, 5))
    assert not classifier.linear._forward_hooks


@pytest.mark.parametrize("how", ["around", "in place", "a part"])
def test_a_compiled_network_shows_its_features(how, images):
    network = NETWORKS["thin-resnet"]()
    plain = Classifier(copy.deepcopy(network)).eval()
    if how == "in place":
        network.compile(backend="eager")
    elif how == "a part":
        network = nn.Sequential(torch.compile(network, backend="eager"))
    else:
        network = torch.compile(network, backend="eager")
    classifier = Classifier(network).eval()
    torch.testing.assert_close(classifier(images), plain(images))
    # The first pass compiled it, with or without a hook.
    for _ in range(2):
        torch.testing.assert_close(classifier.features(images), plain.features(images))
        torch.testing.assert_close(classifier(images), plain(images))


def test_a_compiled_classifier_shows_its_features(images):
    classifier = Classifier(NETWORKS["thin-resnet"]()).eval()
    features, logits = classifier.features(images), classifier(images)
    classifier.compile(backend="eager")
    torch.testing.assert_close(classifier(images), logits)
    torch.testing.assert_close(classifier.features(images), features)


@pytest.mark.parametrize("normalisation", [{}, {"mean": [0.5] * 3, "std": [0.25] * 3}])
def test_images_of_integers_are_refused(normalisation, images):
    classifier = Classifier(mlp(), **normalisation)
    with pytest.raises(DataError, match=r"images are torch.uint8: give floats in \[0, 1\], such as images.float\(\) / 255"):
        classifier((images * 255).byte())
    with pytest.raises(DataError, match=r"images are torch.float64 and the classifier is torch.float32: give images.float\(\)"):
        classifier(images.double())
    assert classifier.double()(images.double()).dtype == torch.float64


def test_a_batch_of_no_images_verifies_nothing():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1)))
    classifier.verify(torch.empty(0, 1, 8, 8))
    assert not classifier.verified
    with pytest.raises(ModelError, match="is not what"):
        classifier(torch.rand(2, 1, 8, 8))
