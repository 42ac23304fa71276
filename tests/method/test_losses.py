"""The loss terms against numbers worked out by hand, and their gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from method_helpers import seeded

from aalp.method import losses

LABELLED = [losses.cross_entropy, losses.boosted_cross_entropy, losses.margin]
PAIRED = [losses.kl_divergence, losses.logit_pairing]


def logs(*probabilities):
    """Logits whose softmax is in the given proportions."""
    return [math.log(value) for value in probabilities]


@pytest.mark.parametrize(
    ("term", "logits", "label", "value"),
    [
        # softmax(ln 3, 0) = (3, 1) / 4: -ln(3/4) = 0.287682 and -ln(1/4) = 1.386294.
        (losses.cross_entropy, logs(3, 1), 0, 0.287682),
        (losses.cross_entropy, logs(3, 1), 1, 1.386294),
        # p = (0.5, 0.3, 0.2). Label 0: -ln 0.5 - ln(1 - 0.3) = 0.693147 + 0.356675.
        (losses.boosted_cross_entropy, logs(5, 3, 2), 0, 1.049822),
        # Label 1: the strongest wrong class is 0: -ln 0.3 - ln(1 - 0.5) = 1.203973 + 0.693147.
        (losses.boosted_cross_entropy, logs(5, 3, 2), 1, 1.897120),
        # Label 2: -ln 0.2 - ln(1 - 0.5) = 1.609438 + 0.693147.
        (losses.boosted_cross_entropy, logs(5, 3, 2), 2, 2.302585),
        # With two classes 1 - p_wrong = p_y: twice the cross-entropy.
        (losses.boosted_cross_entropy, logs(3, 1), 0, 2 * 0.287682),
        # A wrong class at p = 1 - 4e-18, which float32 rounds to 1: -ln p_y = 40 and -ln(1 - p) = 40.
        (losses.boosted_cross_entropy, [0.0, 40.0], 0, 80.0),
        # (1, 4, 2): 4 - 1, then 2 - 4, then 4 - 2.
        (losses.margin, [1.0, 4.0, 2.0], 0, 3.0),
        (losses.margin, [1.0, 4.0, 2.0], 1, -2.0),
        (losses.margin, [1.0, 4.0, 2.0], 2, 2.0),
    ],
)
def test_labelled_terms_by_hand(term, logits, label, value):
    result = term(torch.tensor([logits]), torch.tensor([label]))
    torch.testing.assert_close(result, torch.tensor([value]), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("term", "logits", "other", "value"),
    [
        # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287.
        (losses.kl_divergence, logs(3, 1), logs(1, 1), 0.130812),
        # The other way: 1/2 ln(2/3) + 1/2 ln 2 = -0.202733 + 0.346574.
        (losses.kl_divergence, logs(1, 1), logs(3, 1), 0.143841),
        # A shift of all logits changes no probability.
        (losses.kl_divergence, [1.0, 2.0, 3.0], [6.0, 7.0, 8.0], 0.0),
        # ((1 - 0)^2 + 0^2 + (3 - 5)^2) / 3.
        (losses.logit_pairing, [1.0, 2.0, 3.0], [0.0, 2.0, 5.0], 5 / 3),
        # But a shift of all logits does pair badly: 5^2 in each class.
        (losses.logit_pairing, [1.0, 2.0, 3.0], [6.0, 7.0, 8.0], 25.0),
    ],
)
def test_paired_terms_by_hand(term, logits, other, value):
    result = term(torch.tensor([logits]), torch.tensor([other]))
    torch.testing.assert_close(result, torch.tensor([value]), atol=2e-6, rtol=0)


def batch(dtype=torch.float64, count=7, classes=5, scale=2.0):
    random = seeded(3)
    logits, other = torch.randn(2, count, classes, generator=random, dtype=torch.float64).mul(scale).to(dtype)
    return logits, other, torch.arange(count) % classes


@pytest.mark.parametrize("term", LABELLED)
def test_gradients_of_labelled_terms(term):
    logits, _, labels = batch()
    assert torch.autograd.gradcheck(lambda z: term(z, labels), logits.requires_grad_())


@pytest.mark.parametrize("term", PAIRED)
def test_gradients_of_paired_terms_reach_both_sides(term):
    logits, other, _ = batch()
    assert torch.autograd.gradcheck(term, (logits.requires_grad_(), other.requires_grad_()))


@pytest.mark.parametrize("term", LABELLED + PAIRED)
def test_there_is_one_number_an_image_and_it_depends_on_that_image_alone(term):
    logits, other, labels = batch(torch.float32)
    second = labels if term in LABELLED else other
    together = term(logits, second)
    assert together.shape == (7,)
    for index in range(7):
        part = slice(index, index + 1)
        torch.testing.assert_close(term(logits[part], second[part]), together[part])


@pytest.mark.parametrize("term", LABELLED + PAIRED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(term, dtype):
    logits, other, labels = batch(dtype)
    second = labels if term in LABELLED else other
    result = term(logits, second)
    assert result.dtype == torch.float32
    wide = second if term in LABELLED else second.float()
    torch.testing.assert_close(result, term(logits.float(), wide), atol=0, rtol=0)


@pytest.mark.parametrize("term", LABELLED + PAIRED)
@pytest.mark.parametrize("size", [0.0, 50.0, 1e4])
def test_values_and_gradients_stay_finite_for_extreme_logits(term, size):
    logits = (torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.0]]) * size).requires_grad_()
    other = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]]) * size
    result = term(logits, torch.tensor([0, 0]) if term in LABELLED else other)
    result.sum().backward()
    assert result.isfinite().all()
    assert logits.grad.isfinite().all()


def test_divergence_and_pairing_of_a_thing_with_itself_vanish():
    logits, _, _ = batch(torch.float32)
    for term in PAIRED:
        torch.testing.assert_close(term(logits, logits), torch.zeros(7), atol=1e-6, rtol=0)


def test_the_divergence_is_never_negative():
    logits, other, _ = batch(count=200, scale=4.0)
    assert (losses.kl_divergence(logits, other) > 0).all()


def test_the_margin_is_positive_exactly_where_the_prediction_is_wrong():
    logits, _, labels = batch(count=200)
    wrong = logits.argmax(1) != labels
    assert 0 < wrong.sum() < 200
    assert torch.equal(losses.margin(logits, labels) > 0, wrong)


def test_logits_that_are_not_finite_are_wrong_for_every_label():
    logits = torch.tensor([[2.0, 1.0], [1.0, 1.0], [math.nan, 1.0], [math.nan, math.nan], [math.inf, 0.0], [0.0, -math.inf]])
    assert losses.misclassified(logits, torch.zeros(6, dtype=torch.int64)).tolist() == [False, False, True, True, True, True]
    assert losses.misclassified(logits, torch.ones(6, dtype=torch.int64)).tolist() == [True] * 6
