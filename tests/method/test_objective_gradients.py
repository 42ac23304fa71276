"""What an objective's gradient reaches: images, weights, and neither the sample weights nor the mask."""

from __future__ import annotations

import copy

import pytest
import torch
from method_helpers import constant_aalp, seeded, smooth_classifier
from torch import nn

import aalp
from aalp.method.contributions import contributions
from aalp.method.guided_dropout import GuidedDropout, keep_mask
from aalp.method.objectives import ALP, AT, CLP, MART, TRADES, Standard
from aalp.method.sample_weights import SampleWeights
from aalp.models.preact_resnet import thin_resnet

# What is differentiable everywhere: masks and weights, which are constants to the gradient, are given or off.
MASK = torch.tensor(
    [[1.0, 0.0, 2.0, 1.0, 2.0], [0.0, 1.0, 2.0, 2.0, 1.0], [2.0, 2.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, 2.0]]
)


DIFFERENTIABLE = [
    (Standard(), None),
    (AT(), None),
    (ALP(), None),
    (CLP(), None),
    (TRADES(), None),
    (MART(), None),
    (constant_aalp(weights=None), MASK),
    (constant_aalp(dropout=None, weights=SampleWeights("uniform", boost=1.0)), None),
    (constant_aalp(weights=SampleWeights("correct")), MASK),
]


DIFFERENTIABLE_IDS = [type(objective).__name__ for objective, _ in DIFFERENTIABLE]


def smooth_batch():
    images = torch.rand(4, 1, 2, 3, dtype=torch.float64, generator=seeded())
    adversarial = images + 0.1 * torch.randn(images.shape, dtype=torch.float64, generator=seeded(1))
    return images, adversarial, torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(("objective", "mask"), DIFFERENTIABLE, ids=DIFFERENTIABLE_IDS)
def test_gradients_to_both_images(objective, mask):
    classifier = smooth_classifier()
    images, adversarial, labels = smooth_batch()

    def total(clean, moved):
        return objective(classifier, clean, moved, labels, generator=seeded(2), mask=mask).total

    assert torch.autograd.gradcheck(total, (images.requires_grad_(), adversarial.requires_grad_()))


@pytest.mark.parametrize(("objective", "mask"), DIFFERENTIABLE, ids=DIFFERENTIABLE_IDS)
def test_gradients_to_every_weight(objective, mask):
    classifier = smooth_classifier()
    names, values = zip(*classifier.named_parameters(), strict=True)
    batch = smooth_batch()

    class Total(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = classifier

        def forward(self):
            return objective(self.classifier, *batch, generator=seeded(2), mask=mask).total

    def total(*weights):
        replaced = {f"classifier.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(Total(), replaced, ())

    assert torch.autograd.gradcheck(total, tuple(value.detach().clone().requires_grad_() for value in values))


def gradients(classifier, loss):
    classifier.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in classifier.named_parameters()}


@pytest.mark.parametrize(
    "same_as_alp",
    [
        constant_aalp(dropout=None, weights=None),
        constant_aalp(dropout=GuidedDropout(probability=0.0), weights=SampleWeights("uniform")),
        constant_aalp(dropout=None, weights=SampleWeights("uniform", boost=3.0)),
        # At the start of the ramp nothing is dropped yet.
        constant_aalp(weights=SampleWeights("uniform")),
    ],
    ids=["both-off", "probability-0", "uniform-boosted", "ramp-at-0"],
)
@pytest.mark.parametrize("network", ["small-cnn", "thin-resnet"])
def test_aalp_with_both_modules_idle_is_alp_bit_for_bit(same_as_alp, network, small_classifier):
    torch.manual_seed(0)
    classifier = small_classifier() if network == "small-cnn" else aalp.Classifier(thin_resnet(4, 1), [0.5], [0.2])
    classifier.train()
    twin = copy.deepcopy(classifier)
    images, labels = torch.rand(2, 6, 1, 8, 8, generator=seeded()), torch.arange(6) % 4
    ours = same_as_alp(classifier, *images, labels, progress=0.0, generator=seeded())
    alp = ALP()(twin, *images, labels, progress=0.0, generator=seeded())
    assert torch.equal(ours.total, alp.total)
    assert torch.equal(ours.logits, alp.logits)
    assert {name: ours.parts[name] for name in alp.parts} == alp.parts
    expected = gradients(twin, alp.total)
    for name, gradient in gradients(classifier, ours.total).items():
        assert torch.equal(gradient, expected[name]), name
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("rule", ["confidence", "correct", "agreement"])
def test_weights_and_masks_are_constants_to_the_gradient(rule, small_classifier):
    """AALP against the same sum written out with its weights and mask as plain numbers."""
    classifier = small_classifier()
    images, adversarial = torch.rand(2, 8, 1, 8, 8, generator=seeded())
    labels = torch.arange(8) % 4
    # About half of the ReLU features are 0 anyway: 0.8 drops some that are not.
    dropout = GuidedDropout(fraction=0.8)
    objective = constant_aalp(pairing_weight=2.0, clean_share=0.3, dropout=dropout, weights=SampleWeights(rule, boost=0.7))
    ours = objective(classifier, images, adversarial, labels, generator=seeded(4))
    ours_gradients = gradients(classifier, ours.total)

    weight, bias = classifier.linear.weight, classifier.linear.bias
    h, h_adversarial = classifier.features(images), classifier.features(adversarial)
    with torch.no_grad():
        mask = keep_mask(contributions(h_adversarial, weight, labels), dropout, generator=seeded(4))
    z, z_adversarial = ((features * mask) @ weight.T + bias for features in (h, h_adversarial))
    ce, ce_adversarial = (nn.functional.cross_entropy(logits, labels, reduction="none") for logits in (z, z_adversarial))
    p = z.detach().softmax(1)[torch.arange(8), labels]
    g_ce = z_adversarial.detach().softmax(1) - nn.functional.one_hot(labels, 4)
    g_pair = (z_adversarial - z).detach()
    w = {
        "confidence": p / p.mean(),
        "correct": (z.argmax(1) == labels).float(),
        "agreement": ((g_ce * g_pair).sum(1) / g_ce.norm(dim=1) / g_pair.norm(dim=1)).clamp_min(0),
    }[rule]
    classification = (1 + 0.7 * (1 - w).clamp_min(0)) * (0.3 * ce + 0.7 * ce_adversarial)
    total = (classification + 2.0 * w * (z - z_adversarial).square().mean(1)).mean()

    assert ((mask == 0) & (h_adversarial > 0)).any(1).sum() > 4
    assert len(set(w.tolist())) > 1
    torch.testing.assert_close(ours.total, total)
    for name, gradient in gradients(classifier, total).items():
        torch.testing.assert_close(ours_gradients[name], gradient, atol=1e-6, rtol=1e-4)
