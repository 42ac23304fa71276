"""The gates before any attack: how often the model is asked, and what is asked again after the attacks."""

from __future__ import annotations

from collections.abc import Callable

import known_bad
import torch

from aalp.evaluation.first_gates import cheap_gates, determinism, steady_later
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier


def test_cheap_gates_run_no_other_gate(small_classifier: Callable[..., Classifier]) -> None:
    classifier, seen = small_classifier(3), []
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier(images)
    classifier.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    cheap_gates(classifier, images, torch.zeros(8, dtype=torch.int64), Linf(0.1))
    # A copy on points near, once for the logits, for determinism five times (the fourth in halves) and twice on the points
    # near (again in halves), twice for the gradient.
    assert seen == [8, 8, *[8] * 3, 4, 4, 8, 8, 4, 4, 8, 8]


def test_what_a_model_keeps_only_after_its_first_passes_is_found_after_the_attacks(
    small_classifier: Callable[..., Classifier],
) -> None:
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = known_bad.keeping_later(small_classifier(3))
    steady = determinism(classifier, images, Linf(0.1))
    results = cheap_gates(classifier, images, torch.zeros(8, dtype=torch.int64), Linf(0.1), steady=steady)
    assert [result.passed for result in results] == [True, True, True]
    classifier(images)
    later = steady_later(results, steady())
    assert [result.passed for result in later] == [True, False, True]
    assert later[1].finding.detail.startswith("after the attacks: near images that it was shown")
    assert steady_later(results, results[1].finding) == results
