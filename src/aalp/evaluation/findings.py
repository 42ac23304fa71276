"""What a gate is, what it can come out as, and how shares of images are judged in spite of the draw of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aalp.evaluation.robustness import wilson_interval
from aalp.shown import in_percent

FEWEST_RIGHT = 30
"""With fewer images that are right clean, shares of broken images are too rough to decide a gate (ours)."""

NOT_FINITE = "outputs that are not finite"


@dataclass(frozen=True)
class Gate:
    """A gate.

    Attributes:
        source: letters of the sources in `gates.py`; "ours" where the limit is.
        limit: the largest value that passes, in `unit`.
        unit: "points" (percent of all images), "images", or "" for a plain number.
        rule: the pass rule, with its number.
        meaning: what a failure means.
        remedy: what to do then.
        cheap: run by every evaluation as well.
        optional: needs something that not everybody has; not run without it, which leaves the verdict as it is.
    """

    name: str
    source: str
    limit: float
    unit: str
    rule: str
    meaning: str
    remedy: str
    cheap: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Finding:
    """What a gate came out as.

    Attributes:
        measured: in the gate's unit; None where nothing could be measured.
        passed: None if it could not be decided, or was not run.
        detail: one line of what was seen.
    """

    measured: float | None
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class GateResult:
    """A gate with its finding and its wall time."""

    gate: Gate
    finding: Finding
    seconds: float = 0.0

    @property
    def passed(self) -> bool | None:
        return self.finding.passed

    def record(self) -> dict[str, Any]:
        """As it stands in a record."""
        gate, finding = self.gate, self.finding
        return {
            "name": gate.name,
            "source": gate.source,
            "passed": finding.passed,
            "measured": finding.measured if finding.measured is not None and math.isfinite(finding.measured) else None,
            "limit": gate.limit,
            "unit": gate.unit,
            "rule": gate.rule,
            "meaning": gate.meaning,
            "remedy": gate.remedy,
            "detail": finding.detail,
            "optional": gate.optional,
            "seconds": self.seconds,
        }


def share_finding(count: int, total: int, gate: Gate, what: str) -> Finding:
    """The finding on a share of images that should not be above the gate's limit, in points.

    It passes up to the limit and one image more. It fails if the whole 95 % Wilson interval of the share
    lies above the limit. In between it is undecided: the excess is within what the draw of the images explains.

    Args:
        count: images that count against the model.
        total: all images.
        what: the detail's words for the count.
    """
    share = count / total
    low = wilson_interval(count, total)[0]
    passed: bool | None = None
    if count <= gate.limit / 100 * total + 1:
        passed = True
    elif low > gate.limit / 100:
        passed = False
    return _judged(100 * share, passed, f"{what}: {count} of {total} images")


def gain_finding(before: Tensor, after: Tensor, gate: Gate, what: str) -> Finding:
    """The finding on how many points of accuracy a change of the attack gains: what stood before minus what stands after.

    Args:
        before, after: (N,) bool, which images stand under the attack as it was and as it is changed.
    """
    gained = int(before.sum()) - int(after.sum())
    finding = share_finding(max(0, gained), len(before), gate, what)
    return _judged(100 * gained / len(before), finding.passed, f"{what}: accuracy {_percent(before)} -> {_percent(after)}")


def rise_finding(weaker: Tensor, stronger: Tensor, gate: Gate, what: str) -> Finding:
    """The finding on an accuracy that must not rise when the attack becomes stronger, on the same images.

    It passes up to the limit, and always with a single image. It fails beyond that if a sign test says that the rise is
    no accident: among the images on which the two differ, the 95 % Wilson interval of the share that speaks against the
    model lies above one half. In between it is undecided.

    Args:
        weaker, stronger: (N,) bool, which images stand under the weaker and under the stronger attack.
    """
    against, other = int((stronger & ~weaker).sum()), int((weaker & ~stronger).sum())
    rise, total = against - other, len(weaker)
    passed: bool | None = None
    if rise <= max(1.0, gate.limit / 100 * total + 1e-9):
        passed = True
    elif wilson_interval(against, against + other)[0] > 0.5:
        passed = False
    return _judged(100 * rise / total, passed, f"{what}: accuracy {_percent(weaker)} -> {_percent(stronger)}")


def _judged(measured: float, passed: bool | None, detail: str) -> Finding:
    return Finding(measured, passed, detail if passed is not None else f"{detail}, too few images to decide")


def _percent(standing: Tensor) -> str:
    return f"{in_percent(float(standing.double().mean()))}%"


def undecided(why: str) -> Finding:
    """A gate that could not be decided, or was not run."""
    return Finding(None, None, why)


def count_finding(bad: Tensor, gate: Gate, what: str) -> Finding:
    """The finding on images (N, bool) none of which should be bad; a single one is forgiven."""
    finding = share_finding(int(bad.sum()), len(bad), gate, what)
    return Finding(float(torch.count_nonzero(bad)), finding.passed, finding.detail)
