"""Classifier: normalisation inside, features and head that make up the forward pass, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
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


@pytest.fixture
def images():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def mlp(*after, inputs=768, hidden=6, classes=3):
    """Flatten, a hidden layer, a head named `3`, and what comes after it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes), *after)


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


class Inside(nn.Module):
    """Two linear layers of which the second, or what `after` makes of it, is the output."""

    def __init__(self, after=lambda logits: logits, body=nn.Flatten):
        super().__init__()
        self.body, self.hidden, self.logits, self.after = body(), nn.Linear(768, 6), nn.Linear(6, 3), after

    def forward(self, images):
        return self.after(self.logits(self.hidden(self.body(images)).relu()))


class Auxiliary(Inside):
    """A network whose last Linear in the order of definition is not its head: it serves training only, or nobody."""

    def __init__(self, used=False):
        super().__init__()
        self.auxiliary, self.used = nn.Linear(6, 3), used

    def forward(self, images):
        hidden = self.hidden(self.body(images)).relu()
        if self.used:
            self.auxiliary(hidden)
        return self.logits(hidden)


REFUSED = {
    "softmax layer": (lambda: mlp(nn.Softmax(dim=1)), r"output is not what the network's last Linear '3' gives.*softmax"),
    "softmax in forward": (lambda: Inside(lambda z: z.softmax(1)), r"not what the network's last Linear 'logits' gives"),
    "log-softmax": (lambda: mlp(nn.LogSoftmax(dim=1)), r"not what the network's last Linear '3' gives.*head=\.\.\."),
    "scaled logits": (lambda: Inside(lambda z: 2 * z), r"no softmax or other step after it"),
    "relu": (lambda: mlp(nn.ReLU()), r"no softmax or other step after it"),
    # A step in place changes what the head gave as well, so that the two look alike.
    "relu in place": (lambda: mlp(nn.ReLU(inplace=True)), r"no softmax or other step after it"),
    "scaled in place": (lambda: Inside(lambda z: z.mul_(2)), r"no softmax or other step after it"),
    "other shape": (lambda: Inside(lambda z: z[:, :2]), r"not what the network's last Linear"),
    "head does not run": (lambda: Auxiliary(), r"last Linear 'auxiliary' does not run.*head=\.\.\."),
    "head is not the last": (lambda: Auxiliary(used=True), r"last Linear 'auxiliary' gives.*name another final layer"),
    "tuple": (lambda: Inside(lambda z: (z, z)), r"returns a tuple: it has to return one tensor of logits"),
    "dictionary": (lambda: Inside(lambda z: {"logits": z}), r"returns a dict: it has to return one tensor"),
    "tokens": (
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(256, 5)),
        r"takes features of shape \(2, 3, 256\): one row \(N, D\) an image is needed",
    ),
}


@pytest.mark.parametrize("call", ["forward", "features"])
@pytest.mark.parametrize("case", REFUSED)
def test_an_output_that_is_not_the_heads_is_refused_at_the_first_batch(case, call, images):
    make, message = REFUSED[case]
    classifier = Classifier(make())
    for _ in range(2):
        # It is refused every time, not only the first.
        with pytest.raises(ModelError, match=message):
            classifier(images) if call == "forward" else classifier.features(images)
    assert not any(module._forward_hooks for module in classifier.modules())


def test_numbers_that_are_not_finite_are_not_blamed_on_the_head(images):
    # A diverged network does return its head's logits: what is wrong with it is for others to say.
    network = mlp()
    with torch.no_grad():
        network[1].weight[0, 0] = float("nan")
    assert Classifier(network)(images).isnan().all()


@pytest.mark.parametrize("used", [False, True])
def test_another_head_can_be_named(used, images):
    network = Auxiliary(used)
    classifier = Classifier(network, head="logits")
    assert classifier.linear is network.logits
    torch.testing.assert_close(classifier.head(classifier.features(images)), network(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(nn.Conv2d(3, 5, 16)), r"Conv2d has no torch\.nn\.Linear: .*Linear after pooling"),
        (lambda: Classifier(mlp(), head="logits"), r"head 'logits' is no layer of that name: name the torch\.nn\.Linear"),
        (lambda: Classifier(mlp(), head="2"), r"head '2' is a ReLU: name the torch\.nn\.Linear"),
        (lambda: Classifier(mlp(), head=""), r"head '' is a Sequential: name the torch\.nn\.Linear"),
        (lambda: Classifier(mlp(), mean=[0.5]), r"mean is \[0\.5\] and std is None: give both"),
        (lambda: Classifier(mlp(), std=[0.5]), r"mean is None and std is \[0\.5\]: give both"),
        (lambda: Classifier(mlp(), mean=[0.5], std=[0.1, 0.2]), r"one number for each channel"),
        (lambda: Classifier(mlp(), mean=[], std=[]), r"give both, with one number for each channel"),
        (lambda: Classifier(mlp(), mean=[0.5] * 2, std=[0.1, 0.0]), r"std is \[0\.1, 0\.0\]: every deviation .* positive"),
        (lambda: Classifier(mlp(), mean=[0.5], std=[-0.1]), r"std is \[-0\.1\]: every deviation .* positive"),
        (lambda: Classifier(mlp(), mean=[0.5], std=[float("nan")]), r"std is \[nan\]: every deviation .* positive"),
        (lambda: Classifier(mlp(), mean=[124.0, 116.0], std=[58.0, 57.0]), r"mean is \[124\.0, 116\.0\]: .* by 255"),
        (lambda: Classifier(mlp(), mean=[float("nan")], std=[1.0]), r"mean is \[nan\]: images are in \[0, 1\]"),
        (lambda: Classifier(mlp(), mean=0.5, std=0.5), r"mean is 0\.5 and std is 0\.5: give both, with one number"),
        (
            lambda: Classifier(mlp(), mean=torch.ones(1, 2, 1, 1), std=torch.ones(1, 2, 1, 1)),
            r"^mean is tensor.*: give both.*$",
        ),
        (lambda: Classifier(mlp), r"the network is a function: give a torch\.nn\.Module"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_at_once(make, message):
    with pytest.raises(ModelError, match=message):
        make()


class NormalisedRows(nn.Linear):
    """A cosine head: no feature's contribution is its weight times its value."""

    def forward(self, features):
        return nn.functional.linear(features, 5 * nn.functional.normalize(self.weight), self.bias)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(6, 1), r"'3' gives one logit an image: give each class its own, two for two classes"),
        (NormalisedRows(6, 3), r"last NormalisedRows '3' gives something else than its weight times its input plus its bias"),
    ],
)
def test_a_head_whose_features_do_not_add_up_to_a_logit_a_class_is_refused(head, message, images):
    with pytest.raises(ModelError, match=message):
        Classifier(nn.Sequential(*list(mlp())[:3], head))(images)


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_parametrised_head_is_a_head(wrap, images):
    classifier = Classifier(nn.Sequential(*list(mlp())[:3], wrap(nn.Linear(6, 3))))
    torch.testing.assert_close(classifier.head(classifier.eval().features(images)), classifier(images))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_of_any_scale_is_a_head(scale, dtype, images):
    network = mlp()
    with torch.no_grad():
        network[3].weight.mul_(scale)
        network[3].bias.fill_(scale)
    assert Classifier(network).to(dtype)(images.to(dtype)).shape == (4, 3)


def test_a_network_that_answers_otherwise_in_training_mode_is_refused_there(images):
    class Auxiliary(nn.Sequential):
        def forward(self, images):
            logits = super().forward(images)
            return (logits, logits) if self.training else logits

    classifier = Classifier(Auxiliary(*mlp()))
    assert classifier.eval()(images).shape == (4, 3)
    with pytest.raises(ModelError, match=r"returns a tuple in training mode .*: it has to return one tensor of logits"):
        classifier.train()(images)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_mean_and_std_may_be_any_row_of_numbers(kind, images):
    listed, given = Classifier(mlp(), [0.5] * 3, [0.25] * 3), Classifier(mlp(), kind([0.5] * 3), kind([0.25] * 3))
    torch.testing.assert_close(given.normalise(images), listed.normalise(images))


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 4, 16, 16), (2, 16, 16, 3), (16,)])
def test_images_of_other_channels_than_the_mean_are_refused(shape):
    classifier = Classifier(mlp(), mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(DataError, match=r"do not have the 3 channels of the classifier's mean and std: pass images as"):
        classifier(torch.rand(shape))


def test_verification_moves_no_statistics_draws_no_dropout_and_keeps_every_mode(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 196, 3)).train()
    network[1].eval()
    classifier = Classifier(network)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    modes = {name: module.training for name, module in classifier.named_modules()}
    state = torch.get_rng_state()
    classifier.verify(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in classifier.named_modules()} == modes
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_first_training_batch_counts_once_in_the_statistics(images):
    classifier = Classifier(thin_resnet(5, 3)).train()
    classifier(images)
    classifier.features(images)
    assert classifier.network.norm.num_batches_tracked == 2


def test_modes_come_back_when_verification_fails(images):
    classifier = Classifier(mlp(nn.Softmax(dim=1))).train()
    with pytest.raises(ModelError):
        classifier(images)
    assert all(module.training for module in classifier.modules())


def test_a_network_is_verified_once(images):
    runs = []
    network = mlp()
    network.register_forward_hook(lambda *_: runs.append(1))
    classifier = Classifier(network)
    classifier(images)
    assert len(runs) == 2
    classifier(images)
    classifier.features(images)
    assert len(runs) == 4


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


def test_a_batch_of_no_images_verifies_nothing():
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1)))
    classifier.verify(torch.empty(0, 1, 8, 8))
    assert not classifier.verified
    with pytest.raises(ModelError, match="is not what"):
        classifier(torch.rand(2, 1, 8, 8))
