from __future__ import annotations

import pytest

from aalp.training.schedule import one_cycle, step_down


@pytest.mark.parametrize(
    ("progress", "warmup", "factor"),
    [
        (0.0, 0.3, 0.0),
        (0.15, 0.3, 0.5),
        (0.3, 0.3, 1.0),
        (0.65, 0.3, 0.5),
        (1.0, 0.3, 0.0),
        (0.0, 0.0, 1.0),
        (0.25, 0.0, 0.75),
        (0.5, 1.0, 0.5),
        (1.0, 1.0, 1.0),
    ],
)
def test_one_cycle_rises_over_the_warmup_and_falls_to_nothing(progress: float, warmup: float, factor: float) -> None:
    assert one_cycle(progress, warmup) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("progress", "milestones", "factor"),
    [
        (0.0, (0.5, 0.75), 1.0),
        (0.499, (0.5, 0.75), 1.0),
        (0.5, (0.5, 0.75), 0.1),
        (0.75, (0.5, 0.75), 0.01),
        (1.0, (0.5, 0.75), 0.01),
        (0.9, (), 1.0),
    ],
)
def test_step_divides_by_ten_at_each_milestone(progress: float, milestones: tuple[float, ...], factor: float) -> None:
    assert step_down(progress, milestones) == pytest.approx(factor)
