"""From words to options: a verb's function signature is its command line and its YAML schema."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aalp.errors import AalpError, unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PATHS = {
    "data": "SOURCE",
    "evaluate": "RUN_OR_WEIGHTS",
    "audit": "RUN_OR_WEIGHTS",
    "analyze": "RUN...",
    "report": "RUN...",
    "export": "RUN_OR_WEIGHTS",
}
"""Verbs that take paths instead of --config, as their usage shows them; with dots, several of them."""

SPELLINGS = {"--init_from": "--model_options.init_from"}
"""Options by another spelling than their full name."""

GROUPS = ("data_options", "model_options")
"""Groups of options that verbs which take a run have from it."""


def presets() -> dict[str, Path]:
    """The shipped configurations by name."""
    folder = Path(str(resources.files("aalp") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@cache
def build_parser(verb: str) -> ArgumentParser:
    """The parser of a verb, made once in a process: it takes far longer than to parse with it."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    paths = PATHS.get(verb)
    usage = f"aalp {verb} {paths} [options]" if paths else f"aalp {verb} [options]"
    parser = ArgumentParser(prog=f"aalp {verb}", usage=usage, exit_on_error=False, allow_abbrev=False)
    several = paths is not None and paths.endswith("...")
    if several:
        parser.add_argument("runs", nargs="+", type=Path, help="run directories, or comparisons (then all their trained runs)")
    skip: set[str | int] = {"runs"} if several else set()
    parser.add_function_arguments(
        verb_function(verb), as_positional=paths is not None and not several, skip=skip, fail_untyped=True
    )
    if paths is None:
        parser.add_argument("--config", action="config")  # whose help is `aalp.manual.screens.CONFIG`
    return parser


def verb_function(verb: str) -> Callable[..., int | None]:
    """The function that a verb runs; what it returns, if anything, is the exit code."""
    function: Callable[..., int | None] = getattr(import_module(f"aalp.commands.{verb}"), verb)
    return function


def parse(verb: str, words: list[str]) -> dict[str, Any]:
    """The words after a verb as arguments of its function.

    Raises:
        AalpError: an option is unknown, or a value is not what it has to be.
    """
    from jsonargparse import ArgumentError

    parser = build_parser(verb)
    words = _with_config(verb, _with_switches(verb, words))
    try:
        parsed = parser.parse_args(words)
        stored = _options_of_the_run(verb, parsed)
        if stored:  # the parser lays what was typed over them
            parsed = parser.parse_args([*stored, *words])
        options: dict[str, Any] = parser.instantiate(parsed).as_dict()
    except ArgumentError as error:
        raise AalpError(_one_line(str(error), parser)) from error
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        if isinstance(error, AalpError):
            raise
        if isinstance(error.__cause__, AalpError):  # of a group that may be None, which the parser tells with all its values
            raise error.__cause__ from None
        # What the parser stumbles over, such as a number in a YAML file where a group of options goes.
        reason = " ".join(str(error).split())
        raise AalpError(f"the options of `{parser.prog}` cannot be read: {reason}; see `{parser.prog} --help`") from error
    finally:
        # A --print_config whose options were refused would stay asked for, and spoil all that is parsed after it.
        vars(parser).pop("print_config", None)
    options.pop("config", None)
    return options


def _options_of_the_run(verb: str, parsed: Any) -> list[str]:
    """The run's own options of each group of which some were typed, as words: the parser fills a group up with defaults."""
    defaults = _defaults(verb)
    # A group that is None by default is the run's own.
    groups = [name for name in GROUPS if name in defaults and defaults[name] is None and parsed.get(name) is not None]
    if not groups:
        return []
    from aalp.commands.opening import run_groups

    return [f"--{name}={json.dumps(options)}" for name, options in run_groups(parsed.path, groups).items()]


def _with_switches(verb: str, words: list[str]) -> list[str]:
    """`--quiet` for `--quiet=true`, whatever word follows it; a name may be spelled with - or _, and some otherwise."""
    words = [_with_underscores(word) if word.startswith("--") else word for word in words]
    for short, name in SPELLINGS.items():
        words = [name + word.removeprefix(short) if word.partition("=")[0] == short else word for word in words]
    following = [*words[1:], ""][: len(words)]
    parameters = inspect.signature(verb_function(verb)).parameters
    switches = {f"--{name}" for name, parameter in parameters.items() if parameter.default is False}
    return [
        f"{word}=true" if word in switches and after not in ("true", "false") else word
        for word, after in zip(words, following, strict=True)
    ]


def _with_underscores(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _with_config(verb: str, words: list[str]) -> list[str]:
    """The words with preset names replaced by their files, and the configuration that goes without saying."""
    if verb in PATHS:
        return words
    flags = {word.partition("=")[0] for word in words}
    if verb == "train" and "--resume" in flags and not flags & {"--config", "--data"}:
        return ["--config", str(_config_of_the_run(words, flags)), *words]
    if "--config" not in flags:
        return words if "--data" in flags else ["--config", _preset(verb, "digits"), *words]
    given, others, left = [], [], iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag == "--config":
            given += ["--config", _configuration(verb, value if equals else next(left, ""))]
        else:
            others.append(word)
    # First, so that options override them wherever they stand.
    return [*given, *others]


def _configuration(verb: str, name: str) -> str:
    """What --config names, as the parser takes it.

    Raises:
        AalpError: it is neither a preset nor a file, or a file with groups that the verb does not have.
    """
    from aalp.commands.yaml_file import check_groups, read_yaml

    if not name:
        raise AalpError("--config needs a value")
    if name in presets():
        return _preset(verb, name)
    if not Path(name).is_file():
        raise AalpError(unknown_name("preset or file", name, presets()))
    check_groups(_defaults(verb), read_yaml(Path(name)), f"'{name}'")
    return name


def _config_of_the_run(words: list[str], flags: set[str]) -> Path:
    """The config.yaml of the run that --resume names, seen to be one whose code may run.

    Raises:
        AalpError: it is none, or names code that nobody said may run.
    """
    from aalp.commands.config import check_one_run
    from aalp.commands.trust import check_attack_trust, check_trust
    from aalp.commands.yaml_file import check_groups, read_yaml

    run = Path(_value_of("--resume", words))
    file = run / "config.yaml"
    if not file.is_file():
        raise AalpError(
            f"'{run}' is not a run directory (it has no config.yaml): name one that `aalp train` made, "
            "or start it with --config or --data"
        )
    config = read_yaml(file)
    check_one_run(run, config)
    check_groups(_defaults("train"), config, f"'{file}'")
    said = bool({"--trust_model_code", "--trust_model_code=true"} & set(words))
    check_trust(run, config.get("model"), said or "--model" in flags)
    if "--evaluation.attacks" not in flags:
        check_attack_trust(run, (config.get("evaluation") or {}).get("attacks", ""), said)
    return file


def _preset(verb: str, name: str) -> str:
    """What a preset says to this verb: one is written for all, and only some have an `objective` or `objectives`."""
    from aalp.commands.yaml_file import read_yaml

    known = _defaults(verb)
    return json.dumps({key: value for key, value in read_yaml(presets()[name]).items() if key in known})


def _defaults(verb: str) -> dict[str, Any]:
    """What a verb's options are by default."""
    return {name: parameter.default for name, parameter in inspect.signature(verb_function(verb)).parameters.items()}


def _value_of(flag: str, words: list[str]) -> str:
    for position, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and position + 1 < len(words):
            return words[position + 1]
    raise AalpError(f"{flag} needs a value")


def _one_line(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message as one line that names the value and the remedy."""
    text = " ".join(message.split())
    options = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    unknown = re.search(r"[Uu]nrecognized arguments: (\S+)", text)
    if unknown:
        flag = unknown.group(1).partition("=")[0]
        near = difflib.get_close_matches(flag, options, n=1)
        return f"unknown option {flag}: " + (f"did you mean {near[0]}?" if near else f"see `{parser.prog} --help`")
    foreign = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted", text)
    if foreign:
        within = re.search(r'Parser key "([\w.]+)": .*Option', text)
        group, key = foreign.group(1) or (within.group(1) if within else ""), foreign.group(2) or foreign.group(3)
        name = ".".join(part for part in (group, key) if part)
        near = difflib.get_close_matches(f"--{name}", options, n=1)
        return f"unknown option {name}: " + (f"did you mean {near[0][2:]}?" if near else f"see `{parser.prog} --help`")
    _, *inner = re.split(r'Parser key "([\w.]+)": ', text)
    if inner:
        # Of a group that may be None the key within it stands in the words on the group.
        option, *nested = dict.fromkeys(inner[::2])
        name, reason = (
            ".".join([option, *nested]),
            re.sub(r" - Expected [^-]* Given value type: <class '[\w.]+NestedArg'>.*", "", inner[-1]),
        )
        wrong = _wrong_value(name, reason) or f"--{name}: {reason}"
        return wrong if "choose" in wrong else f"{wrong}; see `{parser.prog} --help`"
    return f"{text}; see `{parser.prog} --help`" if "--help" not in text else text


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "numbers in brackets, such as '[0.5, 0.5, 0.5]'",
    "dict": "names with values, such as '{NAME: VALUE}'",
}
"""What to give where jsonargparse wants a type of this name."""

GROUP = "it is a group of options"


def _wrong_value(option: str, reason: str) -> str | None:
    """What an option has and what it has to be, from jsonargparse's reason; None where that says something else."""
    file = re.match(r"Unable to load config ['\"](.*?)['\"]", reason)
    if file:
        return f"--{option} is '{file.group(1)}': {GROUP}, give --{option}.NAME"
    value = re.search(r".*(?:Given value|Got value): (.*)$", reason)
    choices = re.search(r"typing\.Literal\[(.*?)\]", reason)
    if value and choices:
        return f"--{option} is '{value.group(1)}': choose {choices.group(1).replace(chr(39), '')}"
    # Of several types the first one: the others are None, or shorter ways to say the same.
    wanted = re.search(r"Subtypes: \[(?:<class ')?(\w+)|Expected a <class '(\w+)'>", reason)
    if value and wanted and wanted.group(1) == "aalp":
        return f"--{option} is '{value.group(1)}': {GROUP}, give --{option}.NAME"
    kind = KINDS.get(wanted.group(1) or wanted.group(2)) if wanted else None
    return f"--{option} is '{value.group(1)}': give {kind}" if value and kind else None
