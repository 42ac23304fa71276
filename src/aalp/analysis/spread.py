"""A figure over training seeds: its mean, deviation and t interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import special


def spread(values: Sequence[float], step: float = 0.0) -> dict[str, float | None]:
    """Mean, deviation and 95 % t interval of the mean; the latter two are None for a single value.

    Values that are all equal have no deviation, and a t interval without width would call any mean above or below 0
    real. But figures come in steps, and a few that fall on the same one do not show that nothing is chance: where gaps
    of a normal law without any mean are rounded to steps, that would be wrong up to 12 times in 100 with two seeds.
    Such values get the interval that they would have if one of them were a step off, which keeps that below 5.

    Args:
        step: the smallest amount by which two values can differ.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "deviation": None, "low": None, "high": None}
    deviation = statistics.stdev(values)
    scatter = step / math.sqrt(len(values)) if all_equal(values) else deviation
    half = float(special.stdtrit(len(values) - 1, 0.975)) * scatter / math.sqrt(len(values))
    return {"mean": mean, "deviation": deviation, "low": mean - half, "high": mean + half}


def all_equal(values: Sequence[float]) -> bool:
    """Whether values are the same but for what floating point makes of differences."""
    return max(values) - min(values) <= 1e-9 * max(1.0, *map(abs, values))
