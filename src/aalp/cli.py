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
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aalp.errors import AalpError, InterruptedRunError, unknown_name

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

SWITCHES = ("--quiet", "--evaluate", "--thorough", "--audit", "--prune", "--trust_model_code")

SPELLINGS = {"--trust-model-code": "--trust_model_code", "--init-from": "--model_options.init_from"}
"""Options by another spelling than their full name."""

EXIT_OK = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: the words after `aalp`; by default those of the process.

    Returns:
        The exit code: 0 done, 1 training diverged, 2 bad input or a disk that refuses, 3 the audit failed or the data check
        found what spoils figures, 4 the audit was inconclusive, 5 another of several processes ended, 130, 138 and 143
        stopped by SIGINT, SIGUSR1 and SIGTERM, and saved.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.argv[1:] = words  # what records tell as their command, also when called from Python
    if words[:1] in ([], ["-h"], ["--help"]):
        print(_overview())
        return EXIT_OK
    if words[0] == "--version":
        print(f"aalp {metadata.version('aalp')}")
        return EXIT_OK
    try:
        if words[0] not in VERBS:
            raise AalpError(unknown_name("verb", words[0], VERBS))
        code = _run(words[0], words[1:])
    except AalpError as error:
        if _tells(error):
            print(f"aalp: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("aalp: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        sys.stderr.close()
        return EXIT_OK
    except OSError as error:  # a disk or a folder that refuses, wherever it was met
        print(f"aalp: {error.strerror or error}: {error.filename or 'the disk'}; free space or choose another", file=sys.stderr)
        return AalpError.exit_code
    return EXIT_OK if code is None else code


def _run(verb: str, words: list[str]) -> int | None:
    """Run a verb here, as one of several processes, or start those."""
    options = _parse(verb, words)
    from aalp.commands import launching

    if launching.is_rank():
        if "devices" not in options:
            raise AalpError(f"`aalp {verb}` runs in one process: start it without torchrun or srun")
        with launching.as_rank():
            return _function(verb)(**options)
    if "devices" in options and launching.several(options["devices"], options["nodes"]):
        return launching.launch([sys.executable, "-m", "aalp", verb, *words], options["devices"], options["nodes"])
    return _function(verb)(**options)


def _tells(error: AalpError) -> bool:
    """Whether this process tells its error, where it is one of several.

    The main one nearly always has the same, and is given a moment in which to tell it and end the others.
    """
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        return True
    if isinstance(error, InterruptedRunError):
        return False
    time.sleep(1.0)
    return True


def _overview() -> str:
    lines = ["usage: aalp VERB ...", "", "Adversarially robust image classifiers: train, attack, compare, report.", ""]
    lines += [f"  {name:<10}{purpose}" for name, purpose in VERBS.items()]
    lines += ["", "`aalp VERB --help` tells a verb's options. Presets for --config: " + ", ".join(presets())]
    return "\n".join(lines)


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
    words = _with_config(verb, _with_switches(words))
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


def _with_switches(words: list[str]) -> list[str]:
    """`--quiet` for `--quiet=true`, whatever word follows it; some options have another spelling."""
    for short, name in SPELLINGS.items():
        words = [name + word.removeprefix(short) if word.partition("=")[0] == short else word for word in words]
    following = [*words[1:], ""][: len(words)]
    return [
        f"{word}=true" if word in SWITCHES and after not in ("true", "false") else word
        for word, after in zip(words, following, strict=True)
    ]


def _with_config(verb: str, words: list[str]) -> list[str]:
    """The words with preset names replaced by their files, and the configuration that goes without saying."""
    if verb in PATHS or "--help" in words or "-h" in words:
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
