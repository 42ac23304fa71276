"""Options as a user wrote them into a YAML file: plain values, and groups of options where groups go."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aalp.errors import OptionError, RunError

YAML_VALUES = 100_000
"""More values than any configuration has; aliases of aliases can make a short file that large."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping of plain values.

    Raises:
        RunError: the file cannot be read or is not one.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        _count(content, YAML_VALUES)
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        # ValueError: text that is not UTF-8, dates and numbers that are none.
        raise RunError(f"'{path}' is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise RunError(f"'{path}' is not a mapping of options: write lines such as `data: digits`")
    return content


class _Loader(yaml.SafeLoader):
    """Refuses a name that is given twice: of two blocks `training:` the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in known:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' is there twice", problem_mark=key.start_mark)
                known.add(key.value)
        return super().construct_mapping(node, deep)


MERGE = "tag:yaml.org,2002:merge"
"""Of a key `<<`, which takes in another mapping, to be overridden by what stands here."""


def check_groups(options: Mapping[str, Any], content: Mapping[str, Any], what: str, inside: str = "") -> None:
    """Refuse what the parser would stumble over, take as it is, or not tell where it stands: one value where a group of
    options goes, none for an option that has to have one, and an option that is none.

    Args:
        options: the options by name, a dataclass for each group of them; None for those that may be null.
        content: what was written, nested in the same way.
        what: where it was written, for the message.
        inside: the dotted name of the group that these options are in, with a dot at its end.

    Raises:
        OptionError: naming the group and its value, or the option.
    """
    for name, value in content.items():
        if name not in options:
            raise OptionError(f"{what}: unknown option {inside}{name}: {_remedy(str(name), options, inside)}")
        group = options[name]
        if value is None and not dataclasses.is_dataclass(group) and group is not None:
            raise OptionError(f"{what}: {inside}{name} is null: give a value, or leave it out")
        if not dataclasses.is_dataclass(group) or isinstance(group, type):
            continue
        if not isinstance(value, Mapping):
            given = "null" if value is None else repr(value)
            raise OptionError(f"{what}: {inside}{name} is {given}: a mapping of options is needed")
        default = type(group)()  # in place of values that the user gave: those may be set where null is allowed
        fields = {field.name: getattr(default, field.name) for field in dataclasses.fields(group)}
        check_groups(fields, value, what, f"{inside}{name}.")


def _remedy(name: str, options: Mapping[str, Any], inside: str) -> str:
    """What to do about a name that is no option."""
    group, *within = name.split(".")
    if within and group in options:  # as a flag has it
        return f"nest it, {': {'.join([group, *within])}: ...{'}' * len(within)}"
    near = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {inside}{near[0]}?" if near else "remove it"


def _count(value: Any, left: int) -> int:
    """How many more values there may be after this one; a value that contains itself has no end."""
    if left <= 0:
        raise ValueError(f"it has more than {YAML_VALUES} values")
    left -= 1
    if isinstance(value, (dict, list)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            left = _count(item, left)
    return left
