"""Values as a YAML file holds them, and no objects.

For options whose values may be of any kind. Not `Any`: there the parser builds whatever class or calls whatever function a
mapping with `class_path` names, and a configuration may be a stranger's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Scalar = bool | int | float | str | None
_Shallow = Scalar | list[Scalar] | dict[str, Scalar]
_Deeper = Scalar | list[_Shallow] | dict[str, _Shallow]

Plain = Scalar | list[_Deeper] | dict[str, _Deeper]
"""A scalar, or lists and mappings of such, three deep: as deep as options go (`method: {dropout: {probability: 0.5}}`)."""


def number(value: object) -> float:
    """A number, or a fraction such as 8/255; nan where it is neither."""
    top, slash, bottom = str(value).partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        return math.nan


def flat(options: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Nested options by dotted names, as on the command line."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= flat(value, f"{within}{name}.") if isinstance(value, Mapping) else {f"{within}{name}": value}
    return found
