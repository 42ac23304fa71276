"""Signals that ask a run to stop: noted while it works, acted upon when what it has done is saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Ctrl-C; what a batch system sends before it kills; what it sends as an early warning, where it was asked to."""


ECHO_SECONDS = 2.0
"""For how long after the first signal of a kind another one is taken for the same."""


def stopping_signals() -> list[int]:
    """The numbers of `STOPPING`; Windows has no SIGUSR1."""
    return [int(getattr(signal, name)) for name in STOPPING if hasattr(signal, name)]


@contextmanager
def handled(handler: Callable[[int, object], None], before: dict[int, Any] | None = None) -> Iterator[None]:
    """Gives these signals to a handler inside the block.

    Args:
        before: where the handlers of before go, by number, for a handler that gives a signal back; they come back after it.
    """
    before = {} if before is None else before
    try:
        for number in stopping_signals():
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: there signals are somebody else's
        before.clear()
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Notes these signals instead of dying; a second one of a kind gets through to the handler that was there before.

    But not at once, unless a person presses Ctrl-C: a batch system that tells all processes of a command tells some of them
    twice, as whoever started them passes it on.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    first: dict[int, float] = {}

    def note(number: int, _frame: object) -> None:
        now = time.monotonic()
        if number not in first:
            received.append(number)
            first[number] = now
            if number == signal.SIGINT:
                signal.signal(number, before[number])
        elif now - first[number] > ECHO_SECONDS:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    with handled(note, before):
        yield received


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """SIGINT does nothing, for what is started inside: a terminal sends it to all processes, and one of them is enough."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread: there signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave_stopping_to_main(_worker: int = 0) -> None:
    """Have this process, a worker of another one, outlive the signals that ask that one to stop: it saves first.

    Ctrl-C, `timeout` and batch systems send them to all processes of a command. A second SIGTERM is obeyed: so may the
    other one end a worker that hangs.
    """

    def obey_the_next(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in stopping_signals():
        signal.signal(number, obey_the_next if number == signal.SIGTERM else signal.SIG_IGN)


class Stopped(BaseException):
    """A signal that `raised_signals` let through. Not an Exception: nothing on the way up may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raised_signals() -> Iterator[None]:
    """Turns these signals into `Stopped` at once, for work that is saved piece by piece."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped(number)

    with handled(stop):
        yield
