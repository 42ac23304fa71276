"""Sample weights: each rule by hand, and agreement against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from method_helpers import seeded

from aalp.errors import OptionError
from aalp.method import losses
from aalp.method.sample_weights import RULES, SampleWeights, classification_boost, conflict_cosine, sample_weights

# softmax(ln 3, 0) = (3, 1) / 4.
CLEAN = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
# softmax(0, 0) = (1, 1) / 2.
ADVERSARIAL = torch.zeros(2, 2)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        (SampleWeights("uniform"), [1.0, 1.0]),
        # p_y = 3/4 and 1/4, whose mean is 1/2.
        (SampleWeights("confidence"), [1.5, 0.5]),
        # p_y^2 = 9/16 and 1/16, whose mean is 5/16.
        (SampleWeights("confidence", gamma=2.0), [1.8, 0.2]),
        (SampleWeights("confidence", gamma=0.0), [1.0, 1.0]),
        (SampleWeights("correct"), [1.0, 0.0]),
        # z' - z = (-ln 3, 0). Label 0: p' - onehot = (-1/2, 1/2), whose cosine with (-1, 0) is 1 / sqrt 2.
        # Label 1: (1/2, -1/2), cosine -1 / sqrt 2: the losses conflict.
        (SampleWeights("agreement"), [0.707107, 0.0]),
    ],
)
def test_weights_by_hand(options, weights):
    result = sample_weights(options, CLEAN, ADVERSARIAL, LABELS)
    torch.testing.assert_close(result, torch.tensor(weights), atol=1e-6, rtol=0)


def random_batch(count=64, classes=5):
    clean, adversarial = torch.randn(2, count, classes, generator=seeded())
    return clean, adversarial, torch.randint(classes, (count,), generator=seeded(1))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_confidence_has_batch_mean_one_and_ranks_by_confidence(gamma):
    clean, adversarial, labels = random_batch()
    weights = sample_weights(SampleWeights("confidence", gamma), clean, adversarial, labels)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    confidence = clean.softmax(1)[torch.arange(64), labels]
    assert torch.equal(weights.argsort(), confidence.argsort())


def test_confidence_of_a_hopeless_batch_is_finite():
    # p_y rounds to 0 in every image.
    clean = torch.tensor([[0.0, 200.0], [0.0, 300.0]])
    weights = sample_weights(SampleWeights("confidence"), clean, clean, torch.tensor([0, 0]))
    assert weights.isfinite().all()


def test_the_conflict_cosine_is_that_of_the_two_gradients():
    clean, adversarial, labels = random_batch()
    adversarial.requires_grad_()
    gradients = [
        torch.autograd.grad(term.sum(), adversarial)[0]
        for term in (losses.cross_entropy(adversarial, labels), losses.logit_pairing(clean, adversarial))
    ]
    # Written out: dot product over lengths.
    dot = (gradients[0] * gradients[1]).sum(1)
    cosine = dot / (gradients[0].norm(dim=1) * gradients[1].norm(dim=1))
    torch.testing.assert_close(conflict_cosine(clean, adversarial.detach(), labels), cosine, atol=1e-5, rtol=0)
    weights = sample_weights(SampleWeights("agreement"), clean, adversarial, labels)
    torch.testing.assert_close(weights, cosine.clamp_min(0), atol=1e-5, rtol=0)
    assert 0 < (weights == 0).sum() < 64


@pytest.mark.parametrize("size", [10.0, 25.0, 200.0])
def test_the_conflict_cosine_of_a_sure_network_is_right(size):
    """p'_y = 1 - 2 exp(-size), which rounds to 1. The gradient points along (-2, 1, 1) whatever the size, and z' - z is
    (-2, -1, -1): the cosine is (4 - 1 - 1) / (sqrt 6 sqrt 6)."""
    adversarial = torch.tensor([[size, 0.0, 0.0]])
    clean = adversarial + torch.tensor([2.0, 1.0, 1.0])
    cosine = conflict_cosine(clean, adversarial, torch.tensor([0]))
    torch.testing.assert_close(cosine, torch.tensor([1 / 3]), atol=1e-5, rtol=0)


def test_a_positive_cosine_means_that_descending_one_loss_descends_the_other():
    clean, adversarial, labels = (tensor.double() if tensor.is_floating_point() else tensor for tensor in random_batch())
    # A small step down the pairing gradient, towards the clean logits.
    moved = adversarial - 1e-5 * (adversarial - clean)
    falls = losses.cross_entropy(moved, labels) < losses.cross_entropy(adversarial, labels)
    assert torch.equal(falls, conflict_cosine(clean, adversarial, labels) > 0)


def test_the_conflict_cosine_of_an_untouched_image_is_zero():
    clean, _, labels = random_batch()
    assert torch.equal(conflict_cosine(clean, clean, labels), torch.zeros(64))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("boost", [0.0, 2.0])
def test_weights_are_never_negative_and_carry_no_gradient(rule, boost):
    clean, adversarial, labels = random_batch()
    options = SampleWeights(rule, boost=boost)
    weights = sample_weights(options, clean.requires_grad_(), adversarial.requires_grad_(), labels)
    assert weights.shape == (64,)
    assert (weights >= 0).all()
    assert not weights.requires_grad
    assert not classification_boost(options, weights).requires_grad


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_logits_are_weighed_in_float32(rule):
    clean, adversarial, labels = random_batch()
    clean, adversarial = clean.bfloat16(), adversarial.bfloat16()
    weights = sample_weights(SampleWeights(rule), clean, adversarial, labels)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, sample_weights(SampleWeights(rule), clean.float(), adversarial.float(), labels))


@pytest.mark.parametrize(
    ("boost", "factors"),
    # 1 + kappa max(0, 1 - w) for w = 1.5, 1, 0.5, 0.
    [(0.0, [1.0, 1.0, 1.0, 1.0]), (2.0, [1.0, 1.0, 2.0, 3.0]), (0.5, [1.0, 1.0, 1.25, 1.5])],
)
def test_the_boost_by_hand(boost, factors):
    result = classification_boost(SampleWeights(boost=boost), torch.tensor([1.5, 1.0, 0.5, 0.0]))
    torch.testing.assert_close(result, torch.tensor(factors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "margin"}, r"rule is 'margin': choose uniform, confidence, correct, agreement"),
        ({"gamma": -1.0}, r"gamma is -1\.0: it has to be .*at least 0"),
        ({"boost": -0.5}, r"boost is -0\.5: it has to be .*at least 0"),
        ({"gamma": float("nan")}, r"gamma is nan: it has to be .*at least 0"),
        ({"boost": float("nan")}, r"boost is nan: it has to be .*at least 0"),
        # Infinity times (1 - w) = 0 is not a number: the first batch would be lost.
        ({"gamma": float("inf")}, r"gamma is inf: it has to be .*at least 0"),
        ({"boost": float("inf")}, r"boost is inf: it has to be .*at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        SampleWeights(**options)
