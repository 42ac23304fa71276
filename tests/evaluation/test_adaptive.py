"""The adaptive attacks are real ones: formulas by hand, strength against plain PGD."""

from __future__ import annotations

from collections.abc import Callable

import known_bad
import pytest
import torch
from torch import Tensor, nn

from aalp.data.sources import load_source
from aalp.data.split import as_float
from aalp.evaluation.adaptive import adaptive_attack, pairing_loss, suppression_loss
from aalp.evaluation.black_box import random_noise, train_stand_in, transfer
from aalp.method.losses import margin
from aalp.method.pgd import perturb
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier

KINDS = [("pairing", False), ("pairing", True), ("features", False), ("features", True)]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = load_source("digits").test
    rows = torch.arange(0, 500, 8)
    return as_float(test.read(rows)), test.labels[rows]


def test_the_pairing_loss_by_hand() -> None:
    clean = torch.tensor([[2.0, 0.0, -2.0]])  # spread 4
    logits = torch.tensor([[0.0, 2.0, -2.0]])
    # Margin (2 - 0) / 4; pairing ((2/4)^2 + (2/4)^2 + 0) / 3.
    assert pairing_loss(clean)(logits, torch.tensor([0])).item() == pytest.approx(0.5 + 0.5 / 3)
    assert pairing_loss(clean, weight=0)(logits, torch.tensor([0])).item() == pytest.approx(0.5)
    # The scale of the logits makes no difference.
    assert pairing_loss(100 * clean)(100 * logits, torch.tensor([0])).item() == pytest.approx(0.5 + 0.5 / 3)


def test_the_suppression_loss_by_hand() -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[4.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
    classifier = Classifier(nn.Sequential(nn.Flatten(), layer))
    labels = torch.tensor([0])
    # Contributions to class 0 of clean features (1, 0.2, 1): 4, 0.2, -1. The first alone carries 4 / 4.2 = 95 %.
    loss = suppression_loss(classifier, torch.tensor([[1.0, 0.2, 1.0]]), labels, None)
    # At features (0.5, 2, 1): the rival's logit is 3.5, feature 0 gives the label 2.
    assert loss(torch.tensor([[0.5, 2.0, 1.0]]), labels).item() == pytest.approx(3.5 - 2)
    masked = suppression_loss(classifier, torch.tensor([[1.0, 0.2, 1.0]]), labels, torch.tensor([[1.0, 0.0, 2.0]]))
    # Masked features (0.5, 0, 2): rival 2.5.
    assert masked(torch.tensor([[0.5, 2.0, 1.0]]), labels).item() == pytest.approx(2.5 - 2)


@pytest.mark.parametrize("threat", [Linf(0.2), L2(1.0)])
@pytest.mark.parametrize(("kind", "masked"), KINDS)
def test_each_adaptive_attack_breaks_about_what_margin_pgd_breaks(
    kind: str, masked: bool, threat: Threat, trained: Callable[[str], Classifier], digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    classifier = trained("aalp")
    candidates = adaptive_attack(kind, masked, classifier, images, labels, threat, 20, seed=0)
    assert bool(threat.contains(candidates, images).all())
    plain = perturb(classifier, images, labels, threat, 20, loss=margin, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean, ours, pgd = ((classifier(x).argmax(1) == labels).double().mean().item() for x in (images, candidates, plain))
    assert ours < clean - 0.1
    # Through the mask another network is attacked, which costs some of the strength.
    assert ours <= pgd + (0.12 if masked else 0.04)
    again = adaptive_attack(kind, masked, classifier, images, labels, threat, 20, seed=0)
    assert torch.equal(candidates, again)


def test_suppressing_features_finds_what_a_cancelled_logit_gradient_hides(
    trained: Callable[[str], Classifier], digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    classifier = known_bad.cancelling(trained("standard"))
    found, hidden = (
        adaptive_attack(kind, False, classifier, images, labels, Linf(0.25), 20, seed=0) for kind in ("features", "pairing")
    )
    with torch.no_grad():
        assert (classifier(hidden).argmax(1) == labels).double().mean() > 0.9
        assert torch.allclose(classifier(images), trained("standard")(images), atol=1e-3)
        assert (classifier(found).argmax(1) == labels).double().mean() < 0.1


@pytest.mark.parametrize("threat", [Linf(0.2), L2(1.0)])
def test_random_noise_stays_in_the_ball_and_more_of_it_breaks_no_less(
    threat: Threat, trained: Callable[[str], Classifier], digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    classifier = trained("standard")
    margins = []
    for draws in (1, 20):
        found = random_noise(classifier, images, labels, threat, 0, draws)
        assert bool(threat.contains(found, images).all())
        margins.append(margin(classifier(found), labels).detach())
    assert bool((margins[1] >= margins[0]).all())
    assert bool((margins[0] >= margin(classifier(images), labels)).all())


def test_a_stand_in_learns_the_answers_and_its_images_transfer(
    trained: Callable[[str], Classifier], digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    classifier = known_bad.without_graph(trained("standard"))  # no gradient of the model's own
    before = torch.random.get_rng_state()
    stand_in = train_stand_in(classifier, images, Linf(0.2), 0, 60)
    assert torch.equal(torch.random.get_rng_state(), before)
    found = transfer(stand_in, images, labels, Linf(0.2), 0, 10)
    with torch.no_grad():
        answers = classifier(images).argmax(1)
        assert (stand_in(images).argmax(1) == answers).double().mean() > 0.8
        assert (classifier(found).argmax(1) == labels).double().mean() < 0.8
    assert bool(Linf(0.2).contains(found, images).all())
