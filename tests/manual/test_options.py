"""What is read from the source has to be what jsonargparse makes of the same functions, for every verb there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aalp.cli import PATHS, VERBS
from aalp.manual.options import names_in, read_verb
from aalp.method.objectives import OBJECTIVES
from aalp.models.catalog import BUILT_IN
from aalp.parsing import build_parser

OF_THE_PARSER = ("help", "config", "print_config", "print_shtab")


def parser_options(verb: str) -> dict[str, Any]:
    """The parser's own options by name; not those that take a whole group as a file."""
    actions = {action.dest: action for action in build_parser(verb)._actions if not action.dest.endswith(".help")}
    groups = {name for name in actions if any(other.startswith(f"{name}.") for other in actions)}
    return {name: action for name, action in actions.items() if name not in groups | set(OF_THE_PARSER)}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_the_parser_is_read_with_its_text_and_default_and_no_other(verb: str) -> None:
    read = {option.name: option for option in read_verb(verb).options}
    parser = parser_options(verb)
    # Optional groups (`DataOptions | None`) are one option with members to the parser.
    optional = {name for name in parser if any(other.startswith(f"{name}.") for other in read)}
    assert {name for name in read if name.partition(".")[0] not in optional} == set(parser) - optional
    for name in set(parser) & set(read):
        action, option = parser[name], read[name]
        assert option.text, name
        if name != "runs":  # its text is the parser's own
            assert option.text == " ".join(action.help.split()), name
        if action.default is None or action.default is False:
            assert option.default in (None, "false"), name
        elif isinstance(action.default, (tuple, list)):
            assert option.default == ",".join(map(str, action.default)), name
        else:
            assert str(option.default).lower() == str(action.default).lower(), name


def test_kinds_choices_and_groups() -> None:
    verb = read_verb("train")
    options = {option.name: option for option in verb.options}
    assert options["training.augment"].choices == ("none", "crop", "flip", "crop+flip", "resized-crop", "resized-crop+flip")
    assert options["method.distance"].choices == ("squared", "one-sided", "kl")
    assert options["quiet"].switch
    assert not options["attack.project"].switch
    assert [options[name].kind for name in ("seed", "run", "training.lr", "data")] == ["INT", "PATH", "FLOAT", "TEXT"]
    assert options["method.dropout.ramp"].group == "method"
    assert verb.groups["threat"] == "what the adversary may do."
    assert verb.description.startswith("Train a classifier.\n\n")
    assert read_verb("compare").options[0].required


def test_names_are_read_from_tables() -> None:
    assert names_in("aalp.method.objectives", "OBJECTIVES") == list(OBJECTIVES)
    assert names_in("aalp.models.catalog", "BUILT_IN") == list(BUILT_IN)
    assert names_in("aalp.models.catalog", "NOTHING") == []


def test_reading_takes_the_source_alone() -> None:
    code = (
        "import json, sys; from aalp.manual.options import read_verb; "
        "print(json.dumps([len(read_verb(verb).options) for verb in sys.argv[1:]])); assert 'torch' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", code, *VERBS], capture_output=True, text=True, check=True)
    assert json.loads(process.stdout) == [len(read_verb(verb).options) for verb in VERBS]


def test_the_source_is_part_of_the_package() -> None:
    assert all((Path(sys.modules["aalp"].__file__ or "").parent / "commands" / f"{verb}.py").is_file() for verb in PATHS)
