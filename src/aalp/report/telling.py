"""Which evaluation speaks for a run, and which records are of one thing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEARCH_STEPS = 100
"""What a part of AutoAttack counts for: the steps of APGD and FAB."""


def telling(record: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What evaluations of a run are ordered by: the largest speaks for it. Accuracy has no say, or the choice would flatter.

    First whether anything was attacked, then test images, the threat that the run was trained for, AutoAttack, the weights
    that its options name, the steps of all attacks, the number of images, and age.
    """
    norm = str((config.get("threat") or {}).get("norm", "")).lower()
    weights = (config.get("evaluation") or {}).get("weights", "best")
    autoattack, steps = strength(record)
    return (
        bool(record["attacks"]),
        record["data"].get("split", "test") == "test",
        record["threat"]["norm"].lower() == norm,
        abs(record["threat"]["eps"] - _radius(config)) < 1e-9,
        autoattack,
        Path(record["weights"]).stem == weights,
        steps,
        record["images"],
        *age(record),
    )


def strength(record: Mapping[str, Any]) -> tuple[bool, int]:
    """Whether AutoAttack ran, and how many steps all attacks took; beside AutoAttack, others are not counted."""
    names = [attack["name"] for attack in record["attacks"]]
    return ("autoattack" in names, 0) if "autoattack" in names else (False, sum(map(_steps, names)))


def _steps(name: str) -> int:
    """Steps of an attack by its name; one that does not say, as somebody's own, counts for one."""
    found = re.fullmatch(r"(?:pgd|cw)-(\d+)", name)
    return int(found[1]) if found else SEARCH_STEPS if name in ("apgd-ce", "apgd-t", "fab-t", "square") else 1


def age(record: Mapping[str, Any]) -> tuple[str, str]:
    """The newest record has the largest."""
    return str(record.get("created", "")), str(record["path"])


def same_subject(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of the same weights and threat."""
    return (
        Path(record["weights"]).name == Path(other["weights"]).name
        and record["threat"]["norm"].lower() == other["threat"]["norm"].lower()
        and math.isclose(record["threat"]["eps"], other["threat"]["eps"])
    )


def _radius(config: Mapping[str, Any]) -> float:
    top, slash, bottom = str((config.get("threat") or {}).get("eps", "nan")).partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        return float("nan")
