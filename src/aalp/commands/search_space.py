"""Which options a search may change, and between which values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aalp.commands.config import override
from aalp.errors import OptionError, unknown_name

SEARCHED = ("model", "objective", "attack", "method", "training", "model_options")
"""Options that a search may change."""

FIXED = {
    "threat": "the trials would face different adversaries, and the weakest would win",
    "training.validation_steps": "the trials would face different adversaries, and the weakest would win",
    "seed": "the luckiest seed would win",
    "data": "the trials would be judged on different images",
    "data_options": "the trials would be judged on different images",
    "evaluation": "a search does not evaluate: it never looks at test images",
    "checkpoint": "it changes nothing in the result",
}
"""Options that a search may not change, and why."""


@dataclass(frozen=True)
class Dimension:
    """The values of one option.

    Attributes:
        low, high: ends of a range, both allowed; whole numbers if both are.
        log: draw evenly in the logarithm.
        choices: values to choose from, in place of a range.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def ends(self) -> tuple[Any, ...]:
        """The values that have to work for the others to be worth a try."""
        return self.choices or (self.low, self.high)


Space = dict[str, Dimension]


def parse_space(space: Mapping[str, Any]) -> Space:
    """`{training.lr: [0.05, 0.4, log], method.weights.rule: {choices: [uniform, confidence]}}` as dimensions by dotted name.

    Raises:
        OptionError: it is empty, or a value is neither a range nor choices, or an option may not be searched.
    """
    if not space:
        raise OptionError("space is empty: give options and their values, such as '{training.lr: [0.05, 0.4, log]}'")
    return {str(name): _dimension(str(name), values) for name, values in space.items()}


def _dimension(name: str, values: Any) -> Dimension:
    for fixed, reason in FIXED.items():
        if name == fixed or name.startswith(f"{fixed}."):
            raise OptionError(f"space has {name}, which a search may not change: {reason}")
    if name.partition(".")[0] not in SEARCHED:
        raise OptionError(f"space: {unknown_name('option', name, SEARCHED)}")
    if isinstance(values, Mapping) and list(values) == ["choices"] and isinstance(values["choices"], list):
        chosen = tuple(values["choices"])
        if len(chosen) < 2 or not all(value is None or isinstance(value, (str, int, float, bool)) for value in chosen):
            raise OptionError(f"space has {chosen} as choices of {name}: give at least two numbers or words")
        return Dimension(choices=chosen)
    if isinstance(values, (list, tuple)) and len(values) in (2, 3) and all(map(_is_number, values[:2])):
        low, high = values[:2]
        log = len(values) == 3
        if (not log or values[2] == "log") and low < high and (low > 0 or not log):
            return Dimension(low, high, log)
    forms = "[LOW, HIGH] with LOW < HIGH, [LOW, HIGH, log] with LOW > 0, or {choices: [A, B]}"
    raise OptionError(f"space has {values!r} for {name}: give {forms}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def applied(options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Options with values laid over them by dotted name.

    Raises:
        OptionError: an unknown option, or a value of the wrong type or range.
    """
    changes: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        place = changes
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    searched = {name: options[name] for name in SEARCHED}
    return {**options, **override(searched, changes, "space")}
