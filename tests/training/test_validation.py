"""What is seen on the validation images of a training that has unlearned its task."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aalp.method.objectives import AT
from aalp.training import loop
from aalp.training.loop import fit
from aalp.training.plan import Fit
from aalp.training.validation import has_collapsed, images_at_once


@pytest.mark.parametrize(
    ("shape", "images"), [((3, 32, 32), 500), ((3, 64, 64), 500), ((3, 224, 224), 40), ((3, 4000, 4000), 1)]
)
def test_large_images_are_judged_fewer_at_once(shape: tuple[int, int, int], images: int) -> None:
    assert images_at_once(shape) == images


@pytest.mark.parametrize(
    ("accuracies", "collapsed"),
    [
        ([(0.6, 0.3), (0.1, 0.1)], True),
        ([(0.6, 0.3), (0.1, 0.1), (0.1, 0.1)], False),  # said already
        ([(0.6, 0.3), (0.1, 0.1), (0.6, 0.4), (0.1, 0.1)], True),  # once more
        ([(0.1, 0.1), (0.1, 0.1)], False),  # it may yet begin to learn
        ([(0.6, 0.3), (0.1, 0.09)], False),  # attacks break something: more than one answer
        ([(0.6, 0.3), (0.2, 0.2)], False),  # right more often than one answer can be
        ([(0.1, 0.1)], False),
    ],
)
def test_a_network_has_collapsed_where_it_answers_alike_and_knew_more(
    accuracies: list[tuple[float, float]], collapsed: bool
) -> None:
    rows = [{"validation_clean": clean, "validation_robust": robust} for clean, robust in accuracies]
    assert has_collapsed(rows, 0.1) == collapsed
    assert not has_collapsed(rows, 0.0)  # without validation images nothing is seen


def test_a_collapse_is_told_with_what_to_do(fit_plan: Callable[..., Fit], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(0.9, 0.5), (0.25, 0.25), (0.25, 0.25)])
    monkeypatch.setattr(loop, "accuracies", lambda *_: next(seen))
    told: list[str] = []
    plan = fit_plan(options={"epochs": 3}, objective=AT())
    fit(Fit(**{**vars(plan), "warn": told.append}))
    assert told == [
        "after epoch 2 the network gives one answer for all images: start anew, lower --training.lr or set --training.clip 1"
    ]
