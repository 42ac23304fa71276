"""Which evaluation speaks for a run, and which records are of one thing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aalp.plain import number
from aalp.store.records import same_threat

SEARCH_STEPS = 100
"""What a part of AutoAttack counts for: the steps of APGD and FAB."""

FEWEST_OTHERS = 10
"""Images that are not of the most frequent class, below which to be right on no more than that class says little."""


def telling(record: Mapping[str, Any], config: Mapping[str, Any], digest: str | None) -> tuple[Any, ...]:
    """What evaluations of a run are ordered by: the largest speaks for it. Accuracy has no say, or the choice would flatter.

    First the data that the run was trained on, then whether anything was attacked, test images, the threat that it was
    trained for, AutoAttack, the weights that its options name, the steps of all attacks, the number of images, and age.
    """
    threat = config.get("threat") or {}
    weights = (config.get("evaluation") or {}).get("weights", "best")
    autoattack, steps = strength(record)
    return (
        of_trained_data(record, config, digest),
        bool(record["attacks"]),
        record["data"].get("split", "test") == "test",
        record["threat"]["norm"].lower() == str(threat.get("norm", "")).lower(),
        abs(record["threat"]["eps"] - number(threat.get("eps", "nan"))) < 1e-9,
        autoattack,
        Path(record["weights"]).stem == weights,
        steps,
        record["images"],
        *age(record),
    )


def of_trained_data(record: Mapping[str, Any], config: Mapping[str, Any], digest: str | None) -> bool:
    """Whether a record is of the data that its run was trained on.

    Args:
        digest: what the weights say of that data: it may have gone by another name in the record, as from another folder.
    """
    data = record["data"]
    return config.get("data") in (None, data.get("name")) or (digest is not None and data.get("digest") == digest)


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


def outdated(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a record is of weights that are no more: the newest of the records on a file of that name is of another epoch."""
    newest = max((other for other in records if Path(other["weights"]).name == Path(record["weights"]).name), key=age)
    return of_other_epochs(record, newest)


def of_other_epochs(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether training that went on between them wrote other weights under the same name."""
    epochs = {(one.get("model") or {}).get("epoch") for one in (record, other)} - {None}
    return len(epochs) > 1


def no_better_than_one_answer(record: Mapping[str, Any]) -> bool:
    """Whether clean accuracy is no better than that of one answer for all images, which no attack can change.

    So it is where a training did not learn its task or unlearned it. Records of earlier versions do not tell, nor do a handful
    of images, most of which are of one class by chance.
    """
    majority = record.get("majority", -1)
    others = round(record["images"] * (1 - majority))  # 50 - 40 would be a rounding below 10
    return bool(record["clean"] <= majority and others >= FEWEST_OTHERS)


def same_subject(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of the same weights, data and threat."""
    return (
        Path(record["weights"]).name == Path(other["weights"]).name
        and not of_other_epochs(record, other)
        and _same_data(record["data"], other["data"])
        and same_threat(record["threat"], other["threat"])
    )


def _same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By digest; by name where a record does not say it."""
    by = "digest" if one.get("digest") and other.get("digest") else "name"
    return bool(one.get(by) == other.get(by))
