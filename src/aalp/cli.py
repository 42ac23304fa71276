"""The command line: `aalp VERB ...`. A verb's function signature is its options, its YAML schema and its help."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aalp.errors import AalpError, InterruptedRunError, OptionError, unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

VERBS = {
    "data": "check a data source: counts, sizes, duplicates across splits, a contact sheet",
    "train": "train a classifier",
    "evaluate": "attack a trained classifier, report its clean and robust accuracy",
    "audit": "look for masked gradients: does the robustness that attacks report hold?",
    "analyze": "measure the paper's two observations and the robustness of runs in detail",
    "compare": "train and evaluate several objectives with several seeds",
    "search": "search options for the highest robust accuracy on validation images",
    "report": "write one HTML file on a run, or on several side by side",
    "export": "take a trained classifier out: safetensors, ONNX, torch.export, Hugging Face, RobustBench",
}
"""Verbs and what they do; each lives in the module of its name in `aalp.commands`, imported when it is called."""

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

EXIT_OK = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: the words after `aalp`; by default those of the process.

    Returns:
        The exit code, see `aalp.manual.screens.EXIT_CODES`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.argv[1:] = words  # what records tell as their command, also when called from Python
    if "--json" in words[1:]:
        return _run_as_json(words)
    end = _run(words)
    if end.line:
        print(f"aalp: {end.line}", file=sys.stderr)
    return end.code


@dataclass(frozen=True)
class _End:
    """How a command ended: its exit code, and for an error one line and its kind."""

    code: int = EXIT_OK
    line: str = ""
    kind: str = ""
    elsewhere: bool = False
    """Whether another process tells the results."""


def _run(words: list[str]) -> _End:
    try:
        text = _told(words)
        if text is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return _End()
        return _call(words[0], words[1:])
    except AalpError as error:
        line = " ".join(str(error).split()) if _tells(error) else ""
        return _End(error.exit_code, line, type(error).__name__, elsewhere=not line)
    except KeyboardInterrupt:
        return _End(130, "stopped", "KeyboardInterrupt")
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        sys.stderr.close()
        return _End()
    except OSError as error:  # a disk or a folder that refuses, wherever it was met
        where = error.filename or "the disk"
        return _End(AalpError.exit_code, f"{error.strerror or error}: {where}; free space or choose another", "OSError")


def _call(verb: str, words: list[str]) -> _End:
    """Run a verb here, as one of several processes, or start those."""
    options = _parse(verb, [word for word in words if word != "--json"])
    from aalp.commands import launching

    if launching.is_rank():
        if "devices" not in options:
            raise AalpError(f"`aalp {verb}` runs in one process: start it without torchrun or srun")
        with launching.as_rank():
            code = _function(verb)(**options)
        return _End(EXIT_OK if code is None else code, elsewhere=not _is_main())
    alone = options.get("dry_run", False)
    if "devices" in options and not alone and launching.several(options["devices"], options["nodes"]):
        command = [sys.executable, "-m", "aalp", verb, *words]
        return _End(launching.launch(command, options["devices"], options["nodes"]), elsewhere=True)
    code = _function(verb)(**options)
    return _End(EXIT_OK if code is None else code)


def _is_main() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _tells(error: AalpError) -> bool:
    """Whether this process tells its error, where it is one of several.

    The main one nearly always has the same, and is given a moment in which to tell it and end the others.
    """
    if _is_main():
        return True
    if isinstance(error, InterruptedRunError):
        return False
    time.sleep(1.0)
    return True


def _run_as_json(words: list[str]) -> int:
    """Run a verb whose results are one JSON document on stdout, errors included; all else goes to stderr.

    Of several processes the main one alone has the results.
    """
    from aalp.commands.console import json_document

    with json_document(words[0], " ".join(["aalp", *words])) as document:
        end = _run(words)
        if end.line:
            print(f"aalp: {end.line}", file=sys.stderr)
        document["exit_code"], document["error"] = end.code, {"kind": end.kind, "message": end.line} if end.line else None
        document["elsewhere"] = end.elsewhere
    return end.code


def _told(words: list[str]) -> str | None:
    """What is asked for that needs no verb to run: help, the version, completion; None for a verb."""
    if words[:1] in ([], ["-h"], ["--help"], ["--help-all"]):
        from aalp.manual.screens import overview

        return overview(VERBS, presets()) + "\n"
    if words[0] == "--version":
        from importlib import metadata

        return f"aalp {metadata.version('aalp')}\n"
    if words[0] == "completion":
        from aalp.manual.completion import answer

        wanted = [word for word in words[1:] if word not in ("-h", "--help")]
        return answer(wanted, VERBS, PATHS, presets())
    if words[0] not in VERBS:
        raise OptionError(unknown_name("verb", words[0], VERBS))
    if any(word in ("-h", "--help", "--help-all") for word in words):
        from aalp.manual.screens import help_screen

        return help_screen(words[0], PATHS.get(words[0]), words[1:]) + "\n"
    return None


def presets() -> dict[str, Path]:
    """The shipped configurations by name."""
    folder = Path(str(resources.files("aalp") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def build_parser(verb: str) -> ArgumentParser:
    """The parser of a verb."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    paths = PATHS.get(verb)
    usage = f"aalp {verb} {paths} [options]" if paths else f"aalp {verb} [options]"
    parser = ArgumentParser(prog=f"aalp {verb}", usage=usage, exit_on_error=False, allow_abbrev=False)
    several = paths is not None and paths.endswith("...")
    if several:
        parser.add_argument("runs", nargs="+", type=Path, help="run directories, or comparisons (then all their runs)")
    skip: set[str | int] = {"runs"} if several else set()
    parser.add_function_arguments(
        _function(verb), as_positional=paths is not None and not several, skip=skip, fail_untyped=True
    )
    if paths is None:
        parser.add_argument("--config", action="config", help="preset name or YAML file; other options override it")
    return parser


def _function(verb: str) -> Callable[..., int | None]:
    function: Callable[..., int | None] = getattr(import_module(f"aalp.commands.{verb}"), verb)
    return function


def _parse(verb: str, words: list[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentError

    parser = build_parser(verb)
    words = _with_config(verb, _with_switches(verb, words))
    try:
        parsed = parser.parse_args(words)
        options: dict[str, Any] = parser.instantiate(parsed).as_dict()
    except ArgumentError as error:
        raise AalpError(_one_line(str(error), parser)) from error
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        if isinstance(error, AalpError):
            raise
        # What the parser stumbles over, such as a number in a YAML file where a group of options goes.
        reason = " ".join(str(error).split())
        raise AalpError(f"the options of `{parser.prog}` cannot be read: {reason}; see `{parser.prog} --help`") from error
    options.pop("config", None)
    return options


def _with_switches(verb: str, words: list[str]) -> list[str]:
    """`--quiet` for `--quiet=true`, whatever word follows it; a name may be spelled with - or _, and some otherwise."""
    words = [_with_underscores(word) if word.startswith("--") else word for word in words]
    for short, name in SPELLINGS.items():
        words = [name + word.removeprefix(short) if word.partition("=")[0] == short else word for word in words]
    following = [*words[1:], ""][: len(words)]
    parameters = inspect.signature(_function(verb)).parameters
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
        from aalp.commands.config import check_attack_trust, check_trust, read_yaml

        run = Path(_value_of("--resume", words))
        if not (run / "config.yaml").is_file():
            raise AalpError(
                f"'{run}' is not a run directory (it has no config.yaml): name one that `aalp train` made, "
                "or start it with --config or --data"
            )
        config = read_yaml(run / "config.yaml")
        _check_groups(verb, str(run / "config.yaml"), config)
        model = config.get("model")
        said = bool({"--trust_model_code", "--trust_model_code=true"} & set(words))
        check_trust(run, model, said or "--model" in flags)
        if "--evaluation.attacks" not in flags:
            check_attack_trust(run, (config.get("evaluation") or {}).get("attacks", ""), said)
        return ["--config", str(run / "config.yaml"), *words]
    if "--config" not in flags:
        return words if "--data" in flags else ["--config", str(presets()["digits"]), *words]
    name = _value_of("--config", words)
    if name in presets():
        path = str(presets()[name])
    elif Path(name).is_file():
        from aalp.commands.config import read_yaml

        _check_groups(verb, name, read_yaml(Path(name)))  # errors name the file
        path = name
    else:
        raise AalpError(unknown_name("preset or file", name, presets()))
    at = next(i for i, word in enumerate(words) if word.partition("=")[0] == "--config")
    rest = words[at + 1 :] if "=" in words[at] else words[at + 2 :]
    # First, so that options override it wherever they stand.
    return ["--config", path, *words[:at], *rest]


def _check_groups(verb: str, path: str, config: dict[str, Any]) -> None:
    """Refuse one value where a group of options goes, which the parser would stumble over."""
    for name, parameter in inspect.signature(_function(verb)).parameters.items():
        if dataclasses.is_dataclass(parameter.default) and name in config and not isinstance(config[name], dict):
            raise AalpError(f"'{path}' has {config[name]!r} as {name}: a mapping of options is needed")


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
        group, key = (foreign.group(1), foreign.group(2)) if foreign.group(1) else ("", foreign.group(3))
        name = ".".join(part for part in (group, key) if part)
        near = difflib.get_close_matches(f"--{name}", options, n=1)
        return f"unknown option {name}: " + (f"did you mean {near[0][2:]}?" if near else f"see `{parser.prog} --help`")
    typed = re.search(r'Parser key "([\w.]+)": (.*)', text)
    if typed:
        return f"--{typed.group(1)}: {typed.group(2)}; see `{parser.prog} --help`"
    return f"{text}; see `{parser.prog} --help`" if "--help" not in text else text


def console() -> None:
    """The `aalp` command."""
    code = main()
    if code != EXIT_OK and os.environ.get("WORLD_SIZE", "1") != "1":
        # What still listens for the other processes would hold this one back.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
