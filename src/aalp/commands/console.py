"""What a person sees while something runs: a live display on a terminal, plain lines elsewhere, nothing on request."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aalp.distributed import ALONE, Ranks
from aalp.shown import in_percent

PLAIN_LINE_SECONDS = 60.0
"""Where there is no live display, a long epoch or attack says at least this often that it is alive."""

SCHEMA = 1
"""Of the document that --json prints."""


class _Console(Console):
    """Progress is for whoever looks: when its reader goes away, the work goes on without it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


class Display:
    """Progress of training and evaluation, on stderr; results go to stdout.

    Args:
        quiet: show no progress.
        ranks: of several processes only the main one shows anything.
    """

    def __init__(self, quiet: bool = False, ranks: Ranks = ALONE) -> None:
        self.is_main = ranks.is_main
        quiet = quiet or not self.is_main
        self.console = _Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        # FORCE_COLOR makes rich take a pipe for a terminal; a log must not get a bar's control characters all the same.
        self.live = sys.stderr.isatty() and not self.console.is_dumb_terminal and not quiet
        self._bar: Progress | None = None
        self._attack_started = 0.0
        self._last_line = time.perf_counter()
        self._first_step: tuple[int, float] | None = None
        self._step = self._total = 0

    def say(self, line: str) -> None:
        """A plain line."""
        self._last_line = time.perf_counter()
        self.console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """A line on what a user should know of, also where no progress is shown."""
        if self.is_main:
            print(f"aalp: {' '.join(line.split())}", file=sys.stderr)

    def result(self, text: str, result: Mapping[str, Any]) -> None:
        """A result, on stdout, see `print_out`."""
        if self.is_main:
            print_out(text, result)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """A progress bar for what happens inside, such as one training, on a terminal."""
        self._first_step = None
        if not self.live:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            yield
        self._bar = None

    def training_step(self, step: int, total: int, loss: float) -> None:
        """To be called after each training step."""
        self._step, self._total = step, total
        self._first_step = self._first_step or (step, time.perf_counter())
        self._advance(f"training  loss {loss:.3f}", step, total)
        self._now_and_then(f"step {step}/{total}  loss {loss:.3f}")

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """To be called after each epoch, with its metrics."""
        first, started = self._first_step or (self._step, 0.0)
        done = self._step - first
        # By the clock, of this process alone: `seconds` has neither validation nor saving in it.
        each = (time.perf_counter() - started) / done if done else row["seconds"] / row["epoch"]
        left = each * (self._total - self._step if done else epochs - row["epoch"])
        validation = "no validation images"
        if "validation_clean" in row:
            clean, robust = in_percent(row["validation_clean"]), in_percent(row["validation_robust"])
            validation = f"validation {clean}% clean, {robust}% robust"
        trained = f"loss {row['loss']:.3f}  train {in_percent(row['train_accuracy'])}%"
        self.say(
            f"epoch {row['epoch']:>3}/{epochs}  {trained}  {validation}  "
            f"{row['images_per_second']:.0f} images/s  {_minutes(left)} left"
        )

    def attack(self, name: str, done: int, total: int) -> None:
        """To be called before and after each attacked batch."""
        if done == 0:
            self._attack_started = time.perf_counter()
        self._advance(name, done, total)
        if done == total and not self.live and total > 0:
            self.say(f"{name}: {total} images in {time.perf_counter() - self._attack_started:.1f} s")
        else:
            self._now_and_then(f"{name}: {done}/{total} images")

    def reading(self, name: str, done: int, total: int) -> None:
        """To be called after each image that is read into memory: small sets take no time, and have no line of their own."""
        self._advance(name, done, total)
        self._now_and_then(f"{name}: {done}/{total}")

    def _now_and_then(self, line: str) -> None:
        """Say a line where there is no live display and nothing was said for a while."""
        if not self.live and time.perf_counter() - self._last_line > PLAIN_LINE_SECONDS:
            self.say(line)

    def _advance(self, description: str, done: int, total: int) -> None:
        if self._bar is None:
            return
        if not self._bar.tasks:
            self._bar.add_task(description, total=total)
        self._bar.update(self._bar.tasks[0].id, description=description, completed=done, total=total)


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


_document: dict[str, Any] | None = None
"""What --json will print; None where results are printed as text."""


@contextmanager
def json_document(verb: str, command: str) -> Iterator[dict[str, Any]]:
    """Results inside are gathered, not printed, and printed at the end as one JSON document, whatever happened.

    Anything else that writes to stdout meanwhile, such as a library, writes to stderr. Whoever sets `elsewhere` in the
    document leaves it to another process to print one.
    """
    global _document
    unknown = {"kind": "Exception", "message": "ended by what stderr tells"}  # stays only where nobody caught it
    document: dict[str, Any] = {"schema": SCHEMA, "verb": verb, "command": command, "exit_code": 1, "error": unknown}
    document["result"] = {}
    out, _document = sys.stdout, document
    try:
        with redirect_stdout(sys.stderr):
            yield document
    finally:
        _document = None
        if not document.pop("elsewhere", False):
            out.write(json.dumps(document, indent=2, default=str) + "\n")
            out.flush()


def print_out(text: str, result: Mapping[str, Any]) -> None:
    """A result, on stdout.

    Args:
        text: for people; not shown where --json is given.
        result: the same for programs, added to what --json prints.
    """
    if _document is None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    else:
        _document["result"].update(result)


def command_line() -> str:
    """The command that this process was started with, for records."""
    return shlex.join(["aalp", *sys.argv[1:]])
