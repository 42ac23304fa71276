"""Models by name: ours, timm's and the user's own, and what their errors say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aalp.errors import ModelError
from aalp.models.catalog import BUILT_IN, ModelOptions, build
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import PreActResNet
from aalp.models.small_cnn import SmallCNN

SHAPE = (3, 32, 32)

FACTORIES = """
import torch
from torch import nn
from aalp.models.classifier import Classifier

made = []

def net(num_classes, image_shape):
    made.append((num_classes, image_shape))
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

def wrapped(num_classes, image_shape):
    return Classifier(net(num_classes, image_shape), mean=[0.1] * image_shape[0], std=[0.9] * image_shape[0])

def eleven(num_classes, image_shape):
    return net(11, image_shape)

def wrapped_eleven(num_classes, image_shape):
    return wrapped(11, image_shape)

def broken(num_classes, image_shape):
    raise RuntimeError("no such weights")

def array(num_classes, image_shape):
    return torch.zeros(num_classes)

def headless(num_classes, image_shape):
    return nn.Conv2d(image_shape[0], num_classes, 3)

def positional(classes):
    return nn.Linear(1, classes)

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own, importable as `aalp_test_own_models`."""
    (tmp_path / "aalp_test_own_models.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "aalp_test_own_models"
    monkeypatch.delitem(__import__("sys").modules, "aalp_test_own_models", raising=False)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_model_builds(name):
    with torch.device("meta"):
        classifier = build(name, 7, SHAPE)
    assert classifier.num_classes == 7
    assert isinstance(classifier.network, SmallCNN if name == "small-cnn" else PreActResNet)
    assert classifier.num_features == {"small-cnn": 200, "thin-resnet": 128, "preact-resnet18": 512}.get(name, 640)


@pytest.mark.parametrize("name", ["small-cnn", "thin-resnet", "preact-resnet18", "timm:resnet10t", "timm:test_vit"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32)])
def test_a_built_model_runs_on_images_of_its_shape(name, shape):
    normalisation = ([0.4] * shape[0], [0.2] * shape[0])
    classifier = build(name, 5, shape, default_normalisation=normalisation).eval()
    assert classifier(torch.rand(2, *shape)).shape == (2, 5)


def test_the_default_normalisation_is_for_models_without_their_own():
    default = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    ours = build("small-cnn", 5, SHAPE, default_normalisation=default)
    torch.testing.assert_close(ours.mean, torch.tensor(default[0]))
    torch.testing.assert_close(ours.std, torch.tensor(default[1]))
    # ImageNet's, as timm's resnet10t was trained on it.
    theirs = build("timm:resnet10t", 5, SHAPE, default_normalisation=default)
    torch.testing.assert_close(theirs.mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(theirs.std, torch.tensor([0.229, 0.224, 0.225]))
    bare = build("small-cnn", 5, SHAPE)
    assert bare.mean.numel() == bare.std.numel() == 0


@pytest.mark.parametrize("name", ["small-cnn", "timm:resnet10t"])
def test_the_options_normalisation_comes_first(name):
    options = ModelOptions(mean=(0.7, 0.7, 0.7), std=(0.3, 0.3, 0.3))
    classifier = build(name, 5, SHAPE, options, ([0.1] * 3, [0.2] * 3))
    torch.testing.assert_close(classifier.mean, torch.full((3,), 0.7))
    torch.testing.assert_close(classifier.std, torch.full((3,), 0.3))


def test_a_transformer_of_timm_is_built_for_the_size_of_the_images():
    classifier = build("timm:vit_tiny_patch16_224", 5, (3, 48, 48))
    # Nine patches of 16x16, and the class token.
    assert classifier.network.pos_embed.shape[1] == 10
    assert classifier.eval()(torch.rand(2, 3, 48, 48)).shape == (2, 5)


def test_a_factory_gets_the_classes_and_the_shape(own):
    classifier = build(f"{own}:net", 4, (2, 5, 6), default_normalisation=([0.5] * 2, [0.2] * 2))
    import aalp_test_own_models

    assert aalp_test_own_models.made == [(4, (2, 5, 6))]
    assert classifier(torch.rand(3, 2, 5, 6)).shape == (3, 4)
    torch.testing.assert_close(classifier.mean, torch.tensor([0.5, 0.5]))


def test_a_factory_may_bring_a_classifier_with_its_own_normalisation(own):
    classifier = build(f"{own}:wrapped", 4, (2, 5, 6), default_normalisation=([0.5] * 2, [0.2] * 2))
    assert isinstance(classifier, Classifier)
    assert not isinstance(classifier.network, Classifier)
    torch.testing.assert_close(classifier.mean, torch.tensor([0.1, 0.1]))
    assert classifier(torch.rand(3, 2, 5, 6)).shape == (3, 4)
    # Asking for another one would otherwise be ignored in silence.
    with pytest.raises(ModelError, match="normalisation of its own: leave out mean and std"):
        build(f"{own}:wrapped", 4, (2, 5, 6), ModelOptions(mean=(0.5, 0.5), std=(0.2, 0.2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("preact_resnet18", r"unknown model 'preact_resnet18': did you mean 'preact-resnet18'\? known are .*thin-resnet"),
        ("smallcnn", r"did you mean 'small-cnn'\?"),
        ("wide-resnet", r"did you mean 'wide-resnet(28|34)-10'\?"),
        ("", r"unknown model '': known are .*package\.module:factory.*timm:NAME"),
        ("timm:resnet_18", r"unknown timm model 'resnet_18': did you mean 'resnet18'\?"),
        ("timm:vit_tiny_patch16_225", r"unknown timm model .* did you mean 'vit_tiny_patch16_224'\?"),
        ("timm:zzzzzzzz", r"unknown timm model 'zzzzzzzz': .*known are "),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, message):
    with pytest.raises(ModelError, match=message) as caught:
        build(name, 10, SHAPE)
    # One readable line, not timm's thousand names.
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("missing", r"has no attribute 'missing'; name it as package\.module:factory"),
        ("broken", r"does not build: RuntimeError: no such weights"),
        ("positional", r"does not build: TypeError: .*num_classes"),
        ("array", r"gave a Tensor: the factory has to return a torch\.nn\.Module"),
        ("eleven", r"has 11 classes and the data has 10: build it for 10"),
        ("headless", r"Conv2d has no torch\.nn\.Linear"),
        ("number", r"does not build: TypeError: .*not callable"),
        ("", r"name it as package\.module:factory"),
    ],
)
def test_a_factory_that_does_not_work_out_is_named(own, factory, message):
    with pytest.raises(ModelError, match=message):
        build(f"{own}:{factory}", 10, SHAPE)


@pytest.mark.parametrize("name", ["no_such_package_of_aalp.models:net", ":net", "..relative:net"])
def test_a_module_that_cannot_be_imported_is_named(name):
    with pytest.raises(ModelError, match=r"name it as package\.module:factory, importable from here"):
        build(name, 10, SHAPE)


def test_a_timm_model_that_does_not_fit_the_images_is_named():
    # Its patches are 16x16: 20 pixels do not divide.
    message = r"timm model 'xcit_nano_12_p16_224' does not build for images of \(3, 20, 20\): .*divide image dimensions"
    with pytest.raises(ModelError, match=message):
        build("timm:xcit_nano_12_p16_224", 10, (3, 20, 20))


def test_a_network_with_another_number_of_classes_is_refused(own):
    with pytest.raises(ModelError, match=rf"model '{own}:eleven' has 11 classes and the data has 3: build it for 3"):
        build(f"{own}:eleven", 3, SHAPE)
    # Its last layer may not be its head; a Classifier has named its own.
    with pytest.raises(ModelError, match=r"build it for 3, or name the layer of its logits: --model_options\.head NAME$"):
        build(f"{own}:eleven", 3, SHAPE)
    with pytest.raises(ModelError, match=r"build it for 3$"):
        build(f"{own}:wrapped_eleven", 3, SHAPE)


def test_building_draws_weights_from_the_global_generator():
    first, again, other = ((torch.manual_seed(seed), build("small-cnn", 3, (1, 8, 8)))[1].head_weight for seed in (0, 0, 1))
    assert isinstance(first, nn.Parameter)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
