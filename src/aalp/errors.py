"""Every error that a user of aalp can cause or meet.

Each message is one line: what is wrong, with the value, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AalpError(Exception):
    """Base class of all errors that aalp raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class OptionError(AalpError, ValueError):
    """An option has a value that makes no sense."""


class DataError(AalpError, ValueError):
    """Images, labels or a data source are not what they have to be."""


class ModelError(AalpError, ValueError):
    """A network cannot be wrapped, built or loaded."""


class RunError(AalpError):
    """A run directory, checkpoint or record is missing, foreign or in the way."""


class DivergedError(AalpError):
    """A training loss stopped being finite."""

    exit_code = 1


class InterruptedRunError(AalpError):
    """A signal stopped a run, and its state is saved: SIGINT (Ctrl-C, exit code 130), SIGTERM (143) or SIGUSR1 (138)."""

    def __init__(self, signal_number: int, command: str) -> None:
        super().__init__(f"stopped, and saved: continue with `{command}`")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class RankLostError(AalpError):
    """Another process of the same run ended; its own error tells why."""

    exit_code = 5


def first_line(error: Exception) -> str:
    """What another library says went wrong, to stand inside a line of ours; the error's kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not in a table, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{name}': {hint}known are {', '.join(names)}"


def check_at_least_zero(name: str, value: float) -> None:
    """Raise an OptionError where a number is below 0 or not finite."""
    if not 0 <= value < float("inf"):
        raise OptionError(f"{name} is {value}: it has to be a finite number of at least 0")


def check_share(name: str, value: float) -> None:
    """Raise an OptionError where a number is outside [0, 1]."""
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value}: it has to lie in [0, 1]")
