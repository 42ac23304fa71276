"""AALP: totals by hand, its schedule, its adversary, and the mask that evaluation never sees."""

from __future__ import annotations

import pytest
import torch
from method_helpers import (
    ADVERSARIAL,
    CLEAN,
    HAND,
    LABELS,
    LN3,
    constant_aalp,
    linear_classifier,
    pixels,
    seeded,
    total_for,
)

import aalp
from aalp.method import losses
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objectives import TRADES
from aalp.method.sample_weights import SampleWeights


@pytest.mark.parametrize(
    ("progress", "total"),
    [
        # No pairing yet, and the clean image alone: CE(z, 0).
        (0.0, 0.287682),
        # 0.75 * 0.287682 + 0.25 * 0.693147 + 0.25 * 0.603474.
        (0.25, 0.539917),
        # 0.490415 + 0.5 * 0.603474: ALP's numbers at half-time.
        (0.5, 0.792152),
        # 0.693147 + 0.603474.
        (1.0, 1.296621),
    ],
)
def test_aalp_goes_from_the_clean_image_to_the_adversarial_one_under_pairing(progress, total):
    assert total_for(AALP(dropout=None), 0, progress=progress) == pytest.approx(total, abs=2e-6)


def test_aalp_schedule_by_hand():
    objective = AALP(pairing_weight=3.0, pairing_ramp=0.4, clean_share=0.8, final_clean_share=0.2)
    # 0.1 of 0.4 is a quarter of the ramp; a tenth of the way from 0.8 to 0.2.
    assert objective.pairing_weight_at(0.1) == pytest.approx(0.75)
    assert objective.clean_share_at(0.1) == pytest.approx(0.74)
    assert objective.pairing_weight_at(0.4) == objective.pairing_weight_at(0.9) == 3.0
    assert (objective.clean_share_at(0.0), objective.clean_share_at(1.0)) == (0.8, pytest.approx(0.2))


@pytest.mark.parametrize(
    ("weights", "total"),
    [
        # Label 0: 0.490415 + 0.301737 w; label 1: 1.039721 + 0.301737 w; the mean of both is
        # 0.765068 + 0.150868 (w_0 + w_1).
        (None, 1.066805),
        (SampleWeights("uniform"), 1.066805),
        # p_y = 3/4 and 1/4: weights 1.5 and 0.5 leave the sum at 2; the pairing losses are the same here.
        (SampleWeights("confidence"), 1.066805),
        # Only image 0 is classified right.
        (SampleWeights("correct"), 0.915936),
        # Weights 1 / sqrt 2 and 0: 0.765068 + 0.150868 * 0.707107.
        (SampleWeights("agreement"), 0.871748),
        # Confidence, boosted by 2: image 1 counts 1 + 2 * 0.5 = 2 times: half of 1.039721 on top.
        (SampleWeights("confidence", boost=2.0), 1.586665),
    ],
)
def test_aalp_weights_by_hand(weights, total):
    objective = constant_aalp(dropout=None, weights=weights)
    assert objective(HAND, CLEAN, ADVERSARIAL, LABELS).total.item() == pytest.approx(total, abs=2e-6)


def test_one_sided_pairing_pulls_on_the_adversarial_logits_only():
    images, adversarial = CLEAN.clone().requires_grad_(), ADVERSARIAL.clone().requires_grad_()
    objective = AALP(final_clean_share=0.0, dropout=None, distance="one-sided")
    objective(HAND, images, adversarial, LABELS).total.backward()
    assert images.grad.abs().sum() == 0
    assert adversarial.grad.abs().sum() > 0


def test_the_adversary_against_a_pairing_by_kl_is_trades():
    assert AALP(distance="kl", adversary="pairing").inner == TRADES().inner


@pytest.mark.parametrize(
    ("adversary", "distance"),
    [
        # Class 1 is ahead of class 2 by 3 + 2.2 x_2, so CE's gradient points to (1, 1): logits move by 0.2 (0, 3.2, 1).
        ("cross-entropy", 0.149867),
        # 0.2 (1, -1) or its opposite: they move by 0.2 (0, 2.8, 5), the furthest of all corners.
        ("pairing", 0.437867),
    ],
)
def test_what_the_adversary_moves_by_hand(adversary, distance):
    classifier = linear_classifier([[0.0, 0.0], [3.0, 0.2], [3.0, -2.0]], [0.0, 3.0, 0.0])
    images, inner = pixels([0.5, 0.5]), AALP(adversary=adversary).inner
    attacked = aalp.perturb(classifier, images, torch.tensor([0]), aalp.Linf(0.2), 10, loss=inner, generator=seeded())
    assert losses.logit_pairing(classifier(images), classifier(attacked)).item() == pytest.approx(distance, abs=2e-6)


def test_aalp_mask_by_hand():
    # Images (1, 0) and (1/2, 1) under the factors (2, 0): z = (2 ln 3, 0), p = (9, 1) / 10 and z' = (ln 3, 0), p' = (3, 1) / 4.
    # CE(z, 0) = ln 10/9 = 0.105361; CE(z', 0) = 0.287682; pairing = (ln 3)^2 / 2 = 0.603474.
    # (0.105361 + 0.287682) / 2 + 0.5 * 0.603474 = 0.196521 + 0.301737.
    loss = constant_aalp()(HAND, pixels([1.0, 0.0]), pixels([0.5, 1.0]), torch.tensor([0]), mask=torch.tensor([[2.0, 0.0]]))
    assert loss.total.item() == pytest.approx(0.498258, abs=2e-6)
    torch.testing.assert_close(loss.logits, torch.tensor([[LN3, 0.0]]))


def test_the_spread_of_the_sample_weights_is_among_the_parts():
    # p_y(x) is 3/4 and 1/4: confidence weights 1.5 and 0.5, whose percentiles lie on the line between them.
    parts = AALP(dropout=None)(HAND, CLEAN, ADVERSARIAL, LABELS).parts
    spread = {name: value.item() for name, value in parts.items() if name.startswith("weight_")}
    expected = {"weight_mean": 1.0, "weight_low": 0.6, "weight_median": 1.0, "weight_high": 1.4}
    assert spread == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}
    assert not any(name.startswith("weight_") for name in AALP(weights=None)(HAND, CLEAN, ADVERSARIAL, LABELS).parts)


def test_one_mask_is_shared_by_the_pair(small_classifier):
    # Under two masks the two sides of a pair of equal images would differ.
    classifier = small_classifier()
    images, labels = torch.rand(8, 1, 8, 8, generator=seeded()), torch.arange(8) % 4
    loss = AALP()(classifier, images, images, labels, generator=seeded())
    assert loss.parts["pairing"] == 0
    # There was a mask: it changed the logits.
    assert not torch.allclose(loss.logits, classifier(images))


def test_the_drawn_mask_ramps_up_with_the_progress(small_classifier):
    classifier = small_classifier()
    features, labels = torch.rand(50, 16, generator=seeded()), torch.arange(50) % 4
    objective = AALP(dropout=GuidedDropout(fraction=1.0, probability=0.5, ramp=0.4))
    assert objective.mask(classifier, features, labels, 0.0) is None
    assert AALP(dropout=None).mask(classifier, features, labels) is None
    for progress, probability in ((0.1, 0.125), (0.4, 0.5), (1.0, 0.5)):
        mask = objective.mask(classifier, features, labels, progress, seeded(1))
        # 800 draws: five standard errors are 0.09 at most.
        assert (mask == 0).float().mean().item() == pytest.approx(probability, abs=0.09)
        assert not mask.requires_grad


def test_a_mask_never_reaches_evaluation(small_classifier):
    classifier = small_classifier(mean=[0.5], std=[0.2])
    images, labels = torch.rand(8, 1, 8, 8, generator=seeded()), torch.arange(8) % 4
    objective, optimizer = AALP(weights=None), torch.optim.SGD(classifier.parameters(), lr=0.1)

    def plain():
        """The classifier's function, written out from its weights."""
        network = classifier.network
        h = network.hidden(network.convolutions((images - 0.5) / 0.2))
        return h @ network.logits.weight.T + network.logits.bias

    for _ in range(3):
        before = classifier.eval()(images)
        classifier.train()
        loss = objective(classifier, images, images, labels, generator=seeded())
        assert not torch.allclose(loss.logits, before)
        loss.total.backward()
        # No step was made: computing the loss left the function alone.
        assert torch.equal(classifier.eval()(images), before)
        optimizer.step()
        optimizer.zero_grad()
        state = torch.get_rng_state()
        after = classifier(images)
        assert torch.equal(classifier(images), after)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(after, plain())
        assert not torch.equal(after, before)
