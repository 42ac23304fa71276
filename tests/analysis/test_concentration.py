from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aalp.analysis.concentration import carried_share, feature_counts, fewest_features, of_side, summarise, top_k_accuracy
from aalp.analysis.pairs import Pairs, Views
from aalp.models.classifier import Classifier


def test_feature_counts_are_all_of_them_or_log_spaced_from_one_to_all() -> None:
    assert feature_counts(5) == [1, 2, 3, 4, 5]
    assert feature_counts(64) == list(range(1, 65))
    many = feature_counts(2048)
    assert (many[0], many[-1]) == (1, 2048)
    assert many == sorted(set(many))
    assert 40 <= len(many) <= 64
    # Each step is about the same factor, once whole numbers allow it: 2048^(1/63) = 1.129.
    assert all(1.1 < later / earlier < 1.16 for earlier, later in zip(many[-20:], many[-19:], strict=False))


def test_the_carried_share_by_hand() -> None:
    # Shares 6/10, 3/10, 1/10 and 1/2, 1/2: the largest carries 0.6 and 0.5, two carry 0.9 and 1; no share in the last row.
    contribution = torch.tensor([[1.0, 6.0, -5.0, 3.0], [2.0, 2.0, 0.0, -9.0], [-1.0, 0.0, -2.0, 0.0]])
    assert carried_share(contribution, [1, 2, 3, 4]) == pytest.approx([0.55, 0.95, 1.0, 1.0])
    assert carried_share(contribution, [2]) == pytest.approx([0.95])
    assert carried_share(-contribution.abs(), [1, 4]) == [0.0, 0.0]


def test_a_summary_has_the_means_of_the_measures_by_hand() -> None:
    found = summarise(torch.tensor([[6.0, 3.0, 1.0, -5.0], [0.0, 0.0, 0.0, -1.0]]))
    # n90 of the first: 6 + 3 = 9 of 10. Effective number 100 / 46. Gini of (0, 1, 3, 6): (1*-1 + 3*1 + 6*3) / (4*10) = 0.5.
    assert found["n90"] == pytest.approx(2 / 2)
    assert found["effective_number"] == pytest.approx(100 / 46 / 2)
    assert found["gini"] == pytest.approx(0.5 / 2)
    assert found["without_positive"] == 1
    assert found["curve_features"] == [1, 2, 3, 4]
    assert found["curve"] == pytest.approx([0.6, 0.9, 1.0, 1.0])


def views(classifier: Classifier, *features: list[float]) -> Views:
    rows = torch.tensor(features)
    return Views(rows, classifier.head(rows).detach())


@pytest.fixture
def by_hand(small_classifier: Callable[..., Classifier]) -> tuple[Classifier, Pairs]:
    """Two classes of four features: class 0 counts the first two, class 1 the other two, with a bias of 1 for class 1."""
    classifier = small_classifier(2)
    classifier.linear.weight = torch.nn.Parameter(torch.zeros(2, 16), requires_grad=False)
    classifier.linear.weight[0, :2] = classifier.linear.weight[1, 2:4] = 1.0
    classifier.linear.bias = torch.nn.Parameter(torch.tensor([0.0, 1.0]), requires_grad=False)
    rest = [0.0] * 12
    # Image 0 (class 0): 0.75 + 0.75 against 0.25 + 1. Image 1 (class 1): 0 against 3 + 1. Image 2 (class 0) is wrong.
    clean = views(classifier, [0.75, 0.75, 0.25, 0.0, *rest], [0.0, 0.0, 3.0, 0.0, *rest], [0.5, 0.0, 0.0, 0.0, *rest])
    # Attacked, image 0 falls to class 1, image 1 stands.
    attacked = views(classifier, [0.75, 0.0, 0.0, 0.5, *rest], [0.0, 0.0, 1.0, 0.0, *rest], [0.5, 0.0, 0.0, 0.0, *rest])
    return classifier, Pairs(torch.tensor([0, 1, 0]), clean, attacked, torch.empty(0))


def test_accuracy_with_the_top_features_by_hand(by_hand: tuple[Classifier, Pairs]) -> None:
    classifier, pairs = by_hand
    assert pairs.right.tolist() == [True, True, False]
    assert pairs.standing.tolist() == [False, True, False]
    rows = top_k_accuracy(classifier, pairs)
    assert [row["k"] for row in rows] == list(range(1, 17))
    # With one feature image 0 has 0.75 against the bias of 1, which stays: only image 1 is right. With two it is whole.
    assert rows[0] == {"k": 1, "clean": pytest.approx(1 / 3), "robust": pytest.approx(1 / 3)}
    for row in rows[1:]:
        assert (row["clean"], row["robust"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert top_k_accuracy(classifier, pairs, [2, 16]) == [rows[1], rows[-1]]


def test_contributions_are_to_the_class_each_side_says(by_hand: tuple[Classifier, Pairs]) -> None:
    classifier, pairs = by_hand
    found = of_side(pairs.adversarial, classifier.head_weight, pairs.labels)
    # Image 0 is taken for class 1: features 2 and 3 count for it, features 0 and 1 for the true class 0.
    assert found["predicted"][0, :4].tolist() == [0.0, 0.0, 0.0, 0.5]
    assert found["true"][0, :4].tolist() == [0.75, 0.0, 0.0, 0.0]
    assert found["predicted"][1].equal(found["true"][1])


def test_keeping_all_features_is_the_whole_network(small_classifier: Callable[..., Classifier]) -> None:
    classifier = small_classifier(4)
    images = torch.rand(2, 40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sides = [Views(h := classifier.features(side), classifier.head(h)) for side in images]
    pairs = Pairs(sides[0].predictions, *sides, torch.empty(0))
    assert top_k_accuracy(classifier, pairs)[-1] == {"k": 16, "clean": 1.0, "robust": pairs.standing.double().mean().item()}


def test_the_fewest_features_for_a_share_of_the_accuracy() -> None:
    rows = [{"k": k, "clean": clean, "robust": 0.0} for k, clean in ((1, 0.1), (2, 0.75), (3, 0.77), (4, 0.7), (8, 0.8))]
    # 95 % of 0.8 is 0.76.
    assert fewest_features(rows, "clean") == 3
    assert fewest_features(rows, "clean", 0.9) == 2
    assert fewest_features(rows, "robust") is None
    # Exactly 95 % is enough, whatever is rounded: of 53 images 19 for 20, and 38 for 40.
    for right in (20, 40):
        assert fewest_features([{"k": k, "clean": n / 53} for k, n in ((1, right * 19 // 20), (2, right))], "clean") == 1
