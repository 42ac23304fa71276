"""What a network has to be for its logits to be a head on features, and that finding out leaves no trace."""

from __future__ import annotations

import pytest
import torch
from models_helpers import mlp
from torch import nn

from aalp.errors import ModelError
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


class CastsInside(nn.Module):
    """A network with mixed precision written into its forward, as for a GPU: the head takes and gives bfloat16."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(images).float()


REFUSED = {
    "softmax layer": (lambda: mlp(nn.Softmax(dim=1)), r"output is not what the network's last Linear '3' gives.*softmax"),
    "softmax in forward": (lambda: Inside(lambda z: z.softmax(1)), r"not what the network's last Linear 'logits' gives"),
    "log-softmax": (lambda: mlp(nn.LogSoftmax(dim=1)), r"not what the network's last Linear '3' gives.*head=\.\.\."),
    "scaled logits": (lambda: Inside(lambda z: 2 * z), r"no softmax or other step after it"),
    "relu": (lambda: mlp(nn.ReLU()), r"no softmax or other step after it"),
    # A step in place changes what the head gave as well, so that the two look alike.
    "relu in place": (lambda: mlp(nn.ReLU(inplace=True)), r"no softmax or other step after it"),
    "scaled in place": (lambda: Inside(lambda z: z.mul_(2)), r"no softmax or other step after it"),
    "other shape": (
        lambda: Inside(lambda z: z[:, :2]),
        r"not what the network's last Linear .* gives \(\(\d, 2\), not \(\d, 3\)\)",
    ),
    "half precision": (lambda: Inside(lambda z: z.half()), r"gives \(torch.float16, not torch.float32\)"),
    "head does not run": (lambda: Auxiliary(), r"last Linear 'auxiliary' does not run.*head=\.\.\."),
    "head is not the last": (lambda: Auxiliary(used=True), r"last Linear 'auxiliary' gives.*name another final layer"),
    "tuple": (lambda: Inside(lambda z: (z, z)), r"returns a tuple: it has to return one tensor of logits"),
    "autocast": (
        lambda: CastsInside(Inside()),
        r"'network.logits' is torch.float32 and takes torch.bfloat16: the network casts in its forward",
    ),
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


class Merging(nn.Linear):
    """As LoRA layers do: `eval` merges what is trained into the weight, and from there it gets no gradient."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_verification_does_not_call_what_a_layer_does_in_eval(images):
    network = nn.Sequential(nn.Flatten(), Merging(768, 6), nn.ReLU(), nn.Linear(6, 3)).train()
    Classifier(network).verify(images)
    assert not network[1].merged


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
