"""The command line: `aalp VERB ...`. A verb's function signature is its options, its YAML schema and its help."""

from __future__ import annotations

import gc
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from aalp.errors import AalpError, InterruptedRunError, OptionError, unknown_name
from aalp.parsing import PATHS, parse, presets, verb_function

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
    except BrokenPipeError:
        _leave_quietly()
        return _End()
    except OSError as error:  # a disk or a folder that refuses, wherever it was met
        where = error.filename or "the disk"
        return _End(AalpError.exit_code, f"{error.strerror or error}: {where}; free space or choose another", "OSError")


def _call(verb: str, words: list[str]) -> _End:
    """Run a verb here, as one of several processes, or start those."""
    try:
        with _nothing_collected():
            options = parse(verb, [word for word in words if word != "--json"])
    except SystemExit:  # of the parser, which has printed what --print_config asks for
        return _End()
    from aalp.commands import launching

    if launching.is_rank():
        if "devices" not in options:
            raise AalpError(f"`aalp {verb}` runs in one process: start it without torchrun or srun")
        with launching.as_rank():
            code = verb_function(verb)(**options)
        return _End(EXIT_OK if code is None else code, elsewhere=not _is_main())
    alone = options.get("dry_run", False)
    if "devices" in options and not alone and launching.several(options["devices"], options["nodes"]):
        command = [sys.executable, "-m", "aalp", verb, *words]
        return _End(launching.launch(command, options["devices"], options["nodes"]), elsewhere=True)
    code = verb_function(verb)(**options)
    return _End(EXIT_OK if code is None else code)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """For imports: what they make stays to the end, and looking through it again and again is an eighth of their time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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

    end = _End()
    try:
        with json_document(words[0], shlex.join(["aalp", *words])) as document:
            end = _run(words)
            if end.line:
                print(f"aalp: {end.line}", file=sys.stderr)
            document["exit_code"], document["error"] = end.code, {"kind": end.kind, "message": end.line} if end.line else None
            document["elsewhere"] = end.elsewhere
    except BrokenPipeError:
        _leave_quietly()
    return end.code


def _leave_quietly() -> None:
    """The reader of a pipe went away, as `head` does: nothing is told any more, at the end of the process neither."""
    with suppress(BrokenPipeError):
        sys.stderr.close()


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


def console() -> None:
    """The `aalp` command."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this (`>&-`)
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    try:
        code = main()
    except KeyboardInterrupt:  # a second Ctrl-C, while the end that the first one brought was told
        code = 130
    if code != EXIT_OK and os.environ.get("WORLD_SIZE", "1") != "1":
        # What still listens for the other processes would hold this one back.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
