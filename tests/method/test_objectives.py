"""The objectives: totals by hand, gradients by finite differences, and what must not differ or leak."""

from __future__ import annotations

import pytest
import torch
from method_helpers import (
    ADVERSARIAL,
    ALL,
    CLEAN,
    HAND,
    LABELS,
    LN3,
    constant_aalp,
    pixels,
    seeded,
    smooth_classifier,
    total_for,
)

import aalp
from aalp.method import losses
from aalp.method.aalp import AALP
from aalp.method.objectives import ALP, AT, CLP, MART, TRADES, Standard
from aalp.method.pgd import AgainstClean
from aalp.models.preact_resnet import thin_resnet


@pytest.mark.parametrize(
    ("objective", "label", "total"),
    [
        (Standard(), 0, 0.287682),
        (Standard(), 1, 1.386294),
        (AT(), 0, 0.693147),
        # (0.287682 + 0.693147) / 2 + 0.5 * 0.603474 = 0.490415 + 0.301737.
        (ALP(), 0, 0.792152),
        # (1.386294 + 0.693147) / 2 + 0.5 * 0.603474 = 1.039721 + 0.301737.
        (ALP(), 1, 1.341458),
        # 0.25 * 0.287682 + 0.75 * 0.693147 + 2 * 0.603474 = 0.071921 + 0.519860 + 1.206949.
        (ALP(pairing_weight=2.0, clean_share=0.25), 0, 1.798729),
        # No clean share and no pairing is adversarial training.
        (ALP(pairing_weight=0.0, clean_share=0.0), 0, 0.693147),
        # One image has no partner but itself.
        (CLP(), 0, 0.287682),
        # 0.287682 + 6 * 0.130812.
        (TRADES(), 0, 1.072554),
        (TRADES(beta=1.0), 0, 0.418494),
        # CE(z', 0) - ln(1 - 1/2) + 5 * (1 - 3/4) * 0.130812 = 1.386294 + 0.163515.
        (MART(), 0, 1.549809),
        # Label 1: (1 - 1/4) instead: 1.386294 + 0.490545.
        (MART(), 1, 1.876839),
        (MART(beta=6.0), 1, 1.974948),
        # Confidence in a batch of one is 1: what is left is ALP.
        (constant_aalp(dropout=None), 0, 0.792152),
        # The distance alone changes: 0.490415 + 0.5 * 0.130812.
        (constant_aalp(dropout=None, distance="kl"), 0, 0.555821),
        (constant_aalp(dropout=None, distance="one-sided"), 0, 0.792152),
    ],
)
def test_totals_by_hand(objective, label, total):
    assert total_for(objective, label) == pytest.approx(total, abs=2e-6)


def test_clp_pairs_the_images_of_a_random_permutation():
    # Logits (ln 3, 0), (0, ln 3), (0, 0): squared distances, averaged over the two classes, are
    # (ln 3)^2 between the first two and (ln 3)^2 / 2 from either to the third.
    images, labels = pixels([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]), torch.tensor([0, 1, 0])
    distance = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.5, 0.5, 0.0]]) * LN3**2
    classification = (2 * 0.287682 + 0.693147) / 3
    totals = set()
    for seed in range(6):
        partner = torch.randperm(3, generator=seeded(seed))
        expected = classification + 0.5 * distance[torch.arange(3), partner].mean().item()
        total = CLP()(HAND, images, images, labels, generator=seeded(seed)).total.item()
        assert total == pytest.approx(expected, abs=2e-6)
        totals.add(round(total, 4))
    assert len(totals) > 1


def test_the_parts_by_hand():
    parts = {name: value.item() for name, value in ALP()(HAND, CLEAN, ADVERSARIAL, LABELS).parts.items()}
    assert parts == {
        # (0.490415 + 1.039721) / 2.
        "classification": pytest.approx(0.765068, abs=2e-6),
        "pairing": pytest.approx(0.603474, abs=2e-6),
        # z' - z = (-ln 3, 0) pulls against label 1 only, and only image 1 is misclassified clean.
        "conflict_rate": pytest.approx(0.5),
        # At z the pairing pulls by z - z' = (ln 3, 0), and p - onehot is (-1/4, 1/4) and (3/4, -3/4): against label 0 only.
        "conflict_rate_clean": pytest.approx(0.5),
        "misclassified_rate": pytest.approx(0.5),
        "misclassified_share": pytest.approx(0.5),
    }


def test_descending_the_pairing_loss_on_both_logits_never_raises_the_classification_loss():
    # Cross-entropy is convex in the logits, so its gradient is monotone: (g(z') - g(z)) . (z' - z) >= 0 (docs/analysis.md).
    random, labels = torch.randn(2, 500, 5, generator=seeded()).double() * 4, torch.arange(500) % 5
    clean, adversarial = random[0].requires_grad_(), random[1].requires_grad_()
    classification = losses.cross_entropy(clean, labels) + losses.cross_entropy(adversarial, labels)
    pairing = losses.logit_pairing(clean, adversarial)
    one, other = (torch.autograd.grad(term.sum(), (clean, adversarial)) for term in (classification, pairing))
    products = sum((a * b).sum(1) for a, b in zip(one, other, strict=True))
    assert (products >= 0).all()


def test_the_misclassified_share_is_of_the_pairing_loss_as_it_counts():
    # Pairing of the images (1, 0) -> (0, 0) and (1, 0) -> (1/2, 0): (ln 3)^2 / 2 and a quarter of it. Image 1 is wrong: 1/5.
    adversarial = pixels([0.0, 0.0], [0.5, 0.0])
    plain = ALP()(HAND, CLEAN, adversarial, LABELS).parts["misclassified_share"]
    assert plain.item() == pytest.approx(0.2, abs=1e-6)
    # Weights 1.5 and 0.5: 0.5 * 1 of 1.5 * 4 + 0.5 * 1.
    weighed = AALP(dropout=None)(HAND, CLEAN, adversarial, LABELS).parts["misclassified_share"]
    assert weighed.item() == pytest.approx(0.5 / 6.5, abs=1e-6)


def test_a_batch_without_pairing_loss_has_finite_parts():
    parts = ALP()(HAND, CLEAN, CLEAN, LABELS).parts
    assert all(value.isfinite() for value in parts.values())
    assert parts["misclassified_share"] == 0


@pytest.mark.parametrize("name", ALL)
def test_parts_and_logits_are_for_reading_only(name, small_classifier):
    images, labels = torch.rand(2, 6, 1, 8, 8), torch.arange(6) % 4
    loss = ALL[name](small_classifier(), *images, labels, generator=seeded())
    assert loss.total.shape == ()
    assert loss.total.requires_grad
    assert loss.logits.shape == (6, 4)
    assert not loss.logits.requires_grad
    assert all(value.shape == () and not value.requires_grad for value in loss.parts.values())


@pytest.mark.parametrize("name", ["at", "alp", "trades", "mart", "aalp-no-dropout"])
def test_the_logits_are_those_of_the_adversarial_images(name, small_classifier):
    classifier = small_classifier()
    images, labels = torch.rand(2, 6, 1, 8, 8), torch.arange(6) % 4
    torch.testing.assert_close(ALL[name](classifier, *images, labels).logits, classifier(images[1]).detach())


def test_a_generator_decides_an_objective_alone():
    classifier = smooth_classifier()
    images, labels = torch.rand(2, 8, 1, 2, 3, dtype=torch.float64, generator=seeded()), torch.arange(8) % 3
    for objective in (AALP(), CLP()):
        state = torch.get_rng_state()
        first, again, other = (objective(classifier, *images, labels, generator=seeded(s)).total for s in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ALL)
def test_the_inner_loss_is_the_documented_one(name):
    inner = ALL[name].inner
    logits, labels = torch.randn(5, 4), torch.arange(5) % 4
    if name in ("standard", "clp"):
        assert inner is None
    elif name == "trades":
        # KL(p, p') with the clean logits first.
        clean = torch.randn(5, 4)
        assert isinstance(inner, AgainstClean)
        p, q = clean.softmax(1), logits.softmax(1)
        torch.testing.assert_close(inner.divergence(clean, logits), (p * (p / q).log()).sum(1))
    else:
        torch.testing.assert_close(inner(logits, labels), losses.cross_entropy(logits, labels))


def test_clean_and_adversarial_images_share_one_forward_pass_of_batchnorm():
    torch.manual_seed(0)
    images, labels = torch.rand(2, 4, 1, 8, 8), torch.arange(4)
    for objective in (ALP(), TRADES(), MART(), AALP()):
        classifier = aalp.Classifier(thin_resnet(4, 1)).train()
        objective(classifier, *images, labels)
        assert classifier.network.norm.num_batches_tracked == 1
