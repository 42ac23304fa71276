"""The judgement of shares, by hand."""

from __future__ import annotations

import pytest
import torch

from aalp.evaluation.findings import Finding, Gate, GateResult, gain_finding, rise_finding, share_finding
from aalp.evaluation.robustness import wilson_interval


def gate(limit: float, unit: str = "points") -> Gate:
    return Gate("a gate", "ours", limit, unit, "rule", "meaning", "remedy")


@pytest.mark.parametrize(
    ("count", "total", "limit", "passed"),
    [
        (0, 100, 0, True),
        (1, 100, 0, True),  # one image is forgiven, whatever the limit
        (2, 100, 0, False),  # the interval of 2 of 100 begins at 0.55 %
        (1, 200, 0.2, True),  # 0.5 points, but one image
        (2, 200, 0.2, False),  # begins at 0.27 %
        (4, 200, 2, True),
        (5, 200, 2, True),  # 2 points and one image
        (6, 200, 2, None),  # 3 points: begins at 1.4 %
        (8, 200, 2, False),  # 4 points: begins at 2.04 %
        (7, 200, 2, None),  # begins at 1.7 %
        (50, 1000, 5, True),
        (51, 1000, 5, True),
        (52, 1000, 5, None),
        (70, 1000, 5, False),  # begins at 5.6 %
    ],
)
def test_a_share_fails_only_if_its_whole_interval_lies_above_the_limit(
    count: int, total: int, limit: float, passed: bool | None
) -> None:
    finding = share_finding(count, total, gate(limit), "seen")
    assert finding.passed is passed
    assert finding.measured == pytest.approx(100 * count / total)
    assert f"{count} of {total}" in finding.detail
    if passed is False:
        assert wilson_interval(count, total)[0] > limit / 100


def rows(*standing: int) -> torch.Tensor:
    mask = torch.zeros(200, dtype=torch.bool)
    for start in standing:
        mask[start] = True
    return mask


def test_a_gain_is_accuracy_lost_and_a_loss_of_the_attack_passes() -> None:
    before, after = torch.arange(200) < 150, torch.arange(200) < 130
    finding = gain_finding(before, after, gate(5), "stronger")
    assert finding.measured == pytest.approx(10)  # 75 % -> 65 %
    assert finding.passed is False  # 20 of 200 begins at 6.6 %
    assert "75.0% -> 65.0%" in finding.detail
    finding = gain_finding(after, before, gate(5), "weaker")
    assert (finding.measured, finding.passed) == (pytest.approx(-10), True)


def test_a_rise_fails_if_a_sign_test_says_so() -> None:
    everything = torch.ones(200, dtype=torch.bool)
    # Ten images stand under the stronger attack only: 5 points, and the interval of 10 of 10 begins at 72 %.
    finding = rise_finding(torch.arange(200) >= 10, everything, gate(1), "weaker -> stronger")
    assert (finding.measured, finding.passed) == (pytest.approx(5), False)
    # Two: 1 point, the limit.
    assert rise_finding(torch.arange(200) >= 2, everything, gate(1), "").passed is True
    # Three more than the other way, but 13 against 10: an accident may look so.
    weaker, stronger = torch.arange(200) >= 13, (torch.arange(200) < 190)
    finding = rise_finding(weaker, stronger, gate(1), "")
    assert (finding.measured, finding.passed) == (pytest.approx(1.5), None)
    assert rise_finding(stronger, weaker, gate(1), "").passed is True


def test_what_is_not_finite_does_not_enter_a_record() -> None:
    record = GateResult(gate(1), Finding(float("nan"), False, "seen"), 0.5).record()
    assert record["measured"] is None
    assert (record["passed"], record["limit"], record["unit"], record["seconds"]) == (False, 1, "points", 0.5)
