"""The options of a verb, read from the source of its function and of the option classes that it takes.

jsonargparse reads the same signatures and docstrings when a verb runs, but has to import torch for it, which takes
seconds. Help and completion need no more than the text: here nothing is imported or run.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Option:
    """One option, or one positional argument, of a verb.

    Attributes:
        name: dotted for a member of a group, such as `training.epochs`.
        kind: what goes in its place in a usage line: INT, FLOAT, TEXT, PATH, `a|b`, or nothing for a switch.
        default: as text; None where there is none, or where leaving it out has a meaning that the text tells.
        text: the docstring's.
        choices: the values it may have, where they are a closed list.
        required: whether it has to be given.
    """

    name: str
    kind: str
    default: str | None
    text: str
    choices: tuple[str, ...] = ()
    required: bool = False

    @property
    def group(self) -> str:
        """The first part of a dotted name; "" for an option of the verb itself."""
        return self.name.partition(".")[0] if "." in self.name else ""

    @property
    def switch(self) -> bool:
        """Whether naming it is enough."""
        return self.kind == ""


@dataclass(frozen=True)
class Verb:
    """A verb: its description, its options in the order of the signature, and what its groups are for."""

    name: str
    description: str
    options: tuple[Option, ...]
    groups: Mapping[str, str]


@cache
def read_verb(name: str) -> Verb:
    """The verb whose function is `aalp.commands.NAME.NAME`."""
    module = _Module.named(f"aalp.commands.{name}")
    function = next(node for node in module.tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    description, texts = _docstring(ast.get_docstring(function) or "")
    options: list[Option] = []
    groups: dict[str, str] = {}
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + list(function.args.defaults)
    pairs = [*zip(arguments, defaults, strict=True), *zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)]
    for argument, default in pairs:
        assert argument.annotation is not None
        text = texts.get(argument.arg, "")
        members = list(_members(argument.arg, module, argument.annotation, default))
        if members:
            groups[argument.arg] = text
            options += members
        else:
            options.append(_option(argument.arg, module, argument.annotation, default, text))
    return Verb(name, description, tuple(options), groups)


@dataclass(frozen=True)
class _Module:
    """A module of this package as a syntax tree."""

    name: str
    tree: ast.Module

    @staticmethod
    @cache
    def named(name: str) -> _Module:
        path = PACKAGE.joinpath(*name.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return _Module(name, ast.parse(file.read_text(encoding="utf-8")))

    def find(self, name: str) -> tuple[_Module, ast.AST] | None:
        """Where a name of this module is defined, here or in a module of ours that it comes from, and the node that does."""
        found = _definitions(self.name).get(name)
        if isinstance(found, str):
            return _Module.named(found).find(name)
        return None if found is None else (self, found)


@cache
def _definitions(module: str) -> dict[str, ast.AST | str]:
    """The classes and values that a module defines by name, and for names from other modules of ours, the module's name."""
    found: dict[str, ast.AST | str] = {}
    for node in _Module.named(module).tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aalp":
            found |= {alias.name: str(node.module) for alias in node.names}
    return found


def names_in(module: str, table: str) -> list[str]:
    """The names that a table or a tuple of a module has, such as the objectives of `aalp.method.objectives`."""
    found = _Module.named(module).find(table)
    node = found[1] if found else None
    items = node.keys if isinstance(node, ast.Dict) else node.elts if isinstance(node, (ast.Tuple, ast.List)) else []
    return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def _members(prefix: str, module: _Module, annotation: ast.expr, default: ast.expr | None) -> Iterator[Option]:
    """The options of a group; none if the annotation is not an option class."""
    place = _option_class(module, annotation)
    if place is None:
        return
    home, definition = place
    given = {word.arg: word.value for word in default.keywords} if isinstance(default, ast.Call) else {}
    for field, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        name = field.target.id
        value = given.get(name, field.value)
        nested = list(_members(f"{prefix}.{name}", home, field.annotation, value))
        if nested:
            yield from nested
            continue
        text = following.value.value if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) else ""
        # A value that the verb gives is a name of the verb's module, one of the class is a name of its own.
        yield _option(f"{prefix}.{name}", module if name in given else home, field.annotation, value, str(text), home)


def _option_class(module: _Module, annotation: ast.expr) -> tuple[_Module, ast.ClassDef] | None:
    """The class of a group of options in `Class` or `Class | None`."""
    for name in (node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)):
        place = module.find(name)
        if place is not None and isinstance(place[1], ast.ClassDef):
            return place[0], place[1]
    return None


def _option(
    name: str, module: _Module, annotation: ast.expr, default: ast.expr | None, text: str, home: _Module | None = None
) -> Option:
    choices = tuple(dict.fromkeys(_literals(home or module, annotation)))
    value = None if default is None else _value(module, default)
    switch = "." not in name and isinstance(annotation, ast.Name) and annotation.id == "bool" and value is False
    kind = "" if switch else "|".join(choices) or _kind(ast.unparse(annotation))
    shown = None if switch or value is None or value == "" else _shown(value)
    return Option(name, kind, shown, " ".join(text.split()), choices, required=default is None)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


KINDS = (
    (r"\bbool\b", "BOOL"),
    (r"\bdict\b", "YAML"),
    (r"\bPath\b", "PATH"),
    (r"\bfloat\b", "FLOAT"),
    (r"^int( \| None)?$", "INT"),
    (r"tuple\[int", "INT,..."),
)


def _kind(annotation: str) -> str:
    return next((kind for pattern, kind in KINDS if re.search(pattern, annotation)), "TEXT")


def _literals(module: _Module, annotation: ast.expr) -> Iterator[str]:
    """The values of every Literal in an annotation, those behind a name of ours included."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            yield from (str(item.value) for item in items if isinstance(item, ast.Constant))
        elif isinstance(node, ast.Name):
            place = module.find(node.id)
            if place is not None and isinstance(place[1], ast.expr):
                yield from _literals(place[0], place[1])


def _value(module: _Module, default: ast.expr) -> object:
    """A default as a value: a constant, a name of one, `Path("...")`, an empty mapping; else its source."""
    if isinstance(default, ast.Name):
        place = module.find(default.id)
        return _value(place[0], place[1]) if place is not None and isinstance(place[1], ast.expr) else default.id
    if isinstance(default, ast.Call) and [ast.unparse(word) for word in default.keywords] == ["default_factory=dict"]:
        return {}
    if isinstance(default, ast.Call) and len(default.args) == 1:
        return _value(module, default.args[0])
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description, and the text of each argument."""
    description, _, rest = inspect.cleandoc(text).partition("\nArgs:\n")
    section = re.split(r"\n(?=\w[\w ]*:\n)", rest)[0]
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            texts[name] = start[2]
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return description.strip(), texts
