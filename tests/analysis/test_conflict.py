from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from aalp.analysis.conflict import pair_measures, summarise, training_means, training_rows, weight_conflict
from aalp.analysis.pairs import Pairs, Views, collect_pairs
from aalp.data.split import ResidentSplit
from aalp.method.losses import cross_entropy, logit_pairing
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier


def pairs_of(labels: list[int], clean: list[list[float]], adversarial: list[list[float]]) -> Pairs:
    sides = [Views(torch.zeros(len(labels), 1), torch.tensor(logits)) for logits in (clean, adversarial)]
    return Pairs(torch.tensor(labels), *sides, torch.empty(0))


def test_observation_2_on_pairs_by_hand() -> None:
    # Image 0: the attack moved z against the label, (1, 0) -> (0, 0): pairing back agrees with CE(z', 0); pairing z
    # towards z' works against CE(z, 0). Image 1, label 1: the "attack" helped, (1, 0) -> (-1, 0): the other way round.
    pairs = pairs_of([0, 1], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [-1.0, 0.0]])
    measures = pair_measures(pairs)
    # g_ce = (-1/2, 1/2) and z' - z = (-1, 0): cosine 1/sqrt 2. All four have this size.
    assert measures["conflict_cosine"].tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])
    assert measures["conflict_cosine_clean"].tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])
    # Mean squares 1/2 and 4/2. Only image 1 is wrong clean: half of the images, 4/5 of the loss.
    assert measures["pairing_distance"].tolist() == pytest.approx([0.5, 2.0])
    found = summarise(pairs, torch.tensor([0.5, -0.1, -0.2, 0.0]))
    assert found == {
        "rate": 0.5,
        "rate_clean": 0.5,
        "rate_weights": 0.5,
        "weights_images": 4,
        "misclassified_rate": 0.5,
        "misclassified_share": pytest.approx(0.8),
        "top_tenth_share": pytest.approx(0.8),
    }


def test_pairs_without_any_pairing_loss_have_finite_shares() -> None:
    found = summarise(pairs_of([1], [[1.0, 0.0]], [[1.0, 0.0]]), torch.empty(0))
    assert (found["rate"], found["misclassified_share"], found["rate_weights"]) == (0.0, 0.0, 0.0)


def test_huge_logits_have_finite_shares_and_what_is_no_number_is_none() -> None:
    """Squares of 1e25 do not fit float32: of (2e25)^2 / 2 and (1e25)^2 / 2 the wrong image carries a fifth."""
    found = summarise(
        pairs_of([0, 1], [[1e25, 0.0], [1e25, 0.0]], [[-1e25, 0.0], [0.0, 0.0]]), torch.tensor([-0.5, float("nan"), 0.5])
    )
    assert found["misclassified_share"] == pytest.approx(0.2)
    assert (found["rate_weights"], found["weights_images"]) == (0.5, 2)
    broken = summarise(pairs_of([0], [[float("nan"), 0.0]], [[0.0, 0.0]]), torch.tensor([float("nan")]))
    assert (broken["misclassified_share"], broken["top_tenth_share"], broken["rate_weights"]) == (None, None, None)
    json.dumps([found, broken], allow_nan=False)


def test_a_conflict_at_the_adversarial_logits_takes_an_attack_that_lowered_the_loss() -> None:
    # The convexity argument of docs/analysis.md, on logits of every size.
    clean, adversarial = torch.randn(2, 2000, 5, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(2000) % 5
    sides = [Views(torch.zeros(2000, 1), logits) for logits in (clean, adversarial)]
    conflict = pair_measures(Pairs(labels, *sides, torch.empty(0)))["conflict_cosine"] < 0
    lowered = cross_entropy(adversarial, labels) < cross_entropy(clean, labels)
    assert conflict.any()
    assert not (conflict & ~lowered).any()


def test_the_conflict_in_the_weights_is_that_of_the_gradients_backward_gives(
    small_classifier: Callable[..., Classifier],
) -> None:
    classifier = small_classifier(3)
    images, adversarial = torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])
    expected = []
    for row in range(4):
        gradients = []
        for loss in ("classification", "pairing"):
            classifier.zero_grad()
            one, other = classifier(images[row : row + 1]), classifier(adversarial[row : row + 1])
            label = labels[row : row + 1]
            if loss == "classification":
                ((cross_entropy(one, label) + cross_entropy(other, label)) / 2).sum().backward()
            else:
                logit_pairing(one, other).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in classifier.parameters() if p.grad is not None]))
        expected.append(F.cosine_similarity(*gradients, dim=0).item())
    classifier.zero_grad()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.requires_grad_(False)
    assert weight_conflict(classifier, images, adversarial, labels).tolist() == pytest.approx(expected, abs=1e-5)
    assert all(value.equal(before[name]) for name, value in classifier.state_dict().items())
    assert all(not p.requires_grad and p.grad is None for p in classifier.parameters())
    # An untouched image has no pairing gradient.
    assert weight_conflict(classifier, images[:1], images[:1], labels[:1]).tolist() == [0.0]


def test_what_training_logs_becomes_numbers_and_means_over_epochs() -> None:
    log = [
        {"epoch": "1", "loss": "2.0", "conflict_rate": "", "misclassified_share": "0.5"},
        {"epoch": "2", "loss": "1.0", "conflict_rate": "0.25", "misclassified_share": "0.1"},
    ]
    rows = training_rows(log)
    assert rows[0] == {"epoch": 1.0, "loss": 2.0, "misclassified_share": 0.5}
    assert training_means(rows) == {
        "conflict_rate": 0.25,
        "conflict_rate_clean": None,
        "misclassified_rate": None,
        "misclassified_share": pytest.approx(0.3),
    }
    assert set(training_means([]).values()) == {None}


def test_pairs_are_what_the_network_makes_of_images_and_of_the_attack_s_images(
    small_classifier: Callable[..., Classifier],
) -> None:
    classifier, threat = small_classifier(4), Linf(0.1)
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split, keep = ResidentSplit(images, torch.arange(10) % 4), torch.tensor([7, 0, 7])
    ticks: list[tuple[str, int, int]] = []
    pairs = collect_pairs(classifier, split, threat, keep=keep, batch_size=4, seed=0, tick=lambda *words: ticks.append(words))
    torch.testing.assert_close(pairs.clean.logits, classifier(images).detach())
    torch.testing.assert_close(classifier.head(pairs.clean.features).detach(), pairs.clean.logits)
    assert pairs.kept.shape == (3, 1, 8, 8)
    assert pairs.kept[0].equal(pairs.kept[2])
    assert threat.contains(pairs.kept, images[keep]).all()
    torch.testing.assert_close(pairs.adversarial.logits[keep], classifier(pairs.kept).detach())
    harder = cross_entropy(pairs.adversarial.logits, split.labels) > cross_entropy(pairs.clean.logits, split.labels)
    assert harder.all()
    assert ticks == [("pgd-20", done, 10) for done in (0, 4, 8, 10)]
