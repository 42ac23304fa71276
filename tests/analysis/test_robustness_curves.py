from __future__ import annotations

import pytest
import torch

from aalp.analysis.concentration import top_k_accuracy
from aalp.analysis.pairs import Pairs, Views, collect_pairs
from aalp.analysis.robustness_curves import attack_overlap, confusion, eps_curve, eps_values, per_class
from aalp.data.split import ResidentSplit
from aalp.method.threat import L2, Linf
from aalp.models.classifier import Classifier


def test_radii_go_to_twice_the_threat_and_then_to_everything() -> None:
    assert eps_values(Linf(0.2), (1, 8, 8)) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 1.0])
    assert eps_values(Linf(0.6), (1, 8, 8)) == pytest.approx([0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
    # The longest way between two images of 64 pixels is 8.
    assert eps_values(L2(0.5), (1, 8, 8))[-2:] == pytest.approx([1.0, 8.0])


def threshold_classifier() -> Classifier:
    """Two classes by the brightness of one pixel: logits (0.5, brightness), in 5 steps of the threat from black."""
    linear = torch.nn.Linear(1, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0], [1.0]]))
        linear.bias.copy_(torch.tensor([0.5, 0.0]))
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), linear)).eval()


def test_the_curve_falls_exactly_where_each_image_can_be_pushed_over() -> None:
    # Distances from the threshold of 0.5: 0.03, 0.12, 0.17, 0.45; the last image is wrong from the start.
    brightness, labels = [0.47, 0.62, 0.33, 0.95, 0.9], [0, 1, 0, 1, 0]
    split = ResidentSplit(torch.tensor(brightness).view(5, 1, 1, 1), torch.tensor(labels))
    right = torch.tensor([True] * 4 + [False])
    ticks: list[tuple[str, int, int]] = []
    curve = eps_curve(
        threshold_classifier(), split, Linf(0.2), right, batch_size=2, seed=0, tick=lambda *words: ticks.append(words)
    )
    assert right.tolist() == [True] * 4 + [False]
    accuracies = [row["accuracy"] for row in curve]
    #                 eps: 0    0.05 0.1  0.15 0.2  0.25 0.3  0.35 0.4  1
    assert accuracies == [0.8, 0.6, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2, 0.0]
    # What a smaller ball broke is not attacked again.
    assert ("cw-20 at eps 0.2", 2, 2) in ticks
    assert ("cw-20 at eps 0.25", 1, 1) in ticks


class Unsure(torch.nn.Module):
    """Answers no number for an image whose pixel is above one half, and class 0 else."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.where(images > 0.5, torch.nan, images - images.detach() + 1)


def test_an_image_whose_logits_are_no_numbers_is_wrong_as_in_an_evaluation() -> None:
    linear = torch.nn.Linear(1, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [0.0]]))
    classifier = Classifier(torch.nn.Sequential(Unsure(), torch.nn.Flatten(), linear)).eval()
    split = ResidentSplit(torch.tensor([0.2, 0.9, 0.45]).view(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64))
    common = {"batch_size": 3, "seed": 0, "tick": lambda *words: None}
    found = collect_pairs(classifier, split, Linf(0.1), keep=torch.tensor([0]), **common)
    # The largest of logits that are no numbers is that of class 0, which is every image's label.
    assert found.clean.predictions.tolist() == [0, 0, 0]
    assert found.right.tolist() == [True, False, True]
    assert {row["clean"] for row in top_k_accuracy(classifier, found)} == {2 / 3}
    curve = eps_curve(classifier, split, Linf(0.1), torch.tensor([True] * 3), **common)
    assert next(row["accuracy"] for row in curve if row["eps"] == 0.025) == 2 / 3


def pairs() -> Pairs:
    """Clean predictions 0 0 1 1, attacked 0 1 1 0, labels 0 0 1 0."""
    clean, attacked = (torch.nn.functional.one_hot(torch.tensor(p), 3).float() for p in ([0, 0, 1, 1], [0, 1, 1, 0]))
    nothing = torch.zeros(4, 1)
    return Pairs(torch.tensor([0, 0, 1, 0]), Views(nothing, clean), Views(nothing, attacked), torch.empty(0))


def test_accuracy_by_class_by_hand() -> None:
    # The fourth image is wrong clean: that the attack undoes it does not make it robust.
    assert per_class(pairs(), ["cat", "dog", "owl"]) == [
        {"name": "cat", "images": 3, "clean": pytest.approx(2 / 3), "robust": pytest.approx(1 / 3)},
        {"name": "dog", "images": 1, "clean": 1.0, "robust": 1.0},
        {"name": "owl", "images": 0, "clean": None, "robust": None},
    ]


def test_confusion_under_attack_by_hand() -> None:
    assert confusion(pairs(), 3) == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_which_attack_breaks_what_by_hand() -> None:
    # Image 3 is wrong clean and counts for no attack. Image 0 is broken by both, 1 by cw alone.
    columns = {
        "index": [0, 1, 2, 3],
        "label": [0, 1, 2, 0],
        "clean_prediction": [0, 1, 2, 1],
        "broken_by": ["pgd-20", "cw-40", None, "clean"],
        "stands_pgd-20": [False, True, True, False],
        "stands_cw-40": [False, False, True, False],
    }
    assert attack_overlap(columns) == [
        {"name": "pgd-20", "accuracy": 0.5, "breaks": 1, "breaks_alone": 0},
        {"name": "cw-40", "accuracy": 0.25, "breaks": 2, "breaks_alone": 1},
    ]


def test_the_curve_starts_at_the_clean_accuracy_and_never_rises_in_either_norm() -> None:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))).eval()
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    for threat in (Linf(0.01), L2(0.1)):
        curve = eps_curve(classifier, ResidentSplit(images, labels), threat, torch.ones(12).bool(), batch_size=5, seed=0)
        accuracies = [row["accuracy"] for row in curve]
        assert accuracies[0] == 1.0
        assert accuracies == sorted(accuracies, reverse=True)
        assert 0.0 < accuracies[4] < 1.0
        # Nothing withstands a ball that holds every image.
        assert accuracies[-1] == 0.0
