"""Several processes that work on the same runs: which of them is at which is told by a lock on the run's config.yaml.

The system takes a lock back when its process dies, however it dies, so that another one goes on with the run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from typing import TypeVar

import torch

from aalp.commands.console import Display, command_line
from aalp.commands.resuming import stopping
from aalp.data.sources import Source
from aalp.distributed import ALONE, Ranks
from aalp.errors import AalpError, DivergedError, InterruptedRunError, RunError
from aalp.stopping import ignored_interrupts
from aalp.store.files import claimed
from aalp.store.run import RunDirectory

Key = TypeVar("Key")

POLL_SECONDS = 1.0
"""How often a process that waits for others looks whether they are done."""

Work = Callable[[Source, Display], None]
"""What each of several processes does: it finds for itself what is left to be done. Others than the first unpickle it."""


def side_by_side(jobs: int, work: Work, source: Source, load: Callable[[], Source], display: Display) -> None:
    """Do work in this process and in jobs - 1 others, which share its threads.

    One of the others that fails says why, and leaves its work to the rest.

    Args:
        load: what gives the others the source; they show no progress.

    Raises:
        InterruptedRunError: a signal arrived; what was under way is saved.
        AalpError: what this process fails of; the others stop then.
    """
    context = multiprocessing.get_context("spawn")
    threads, stop = max(1, torch.get_num_threads() // jobs), context.Event()
    others = [context.Process(target=_other, args=(work, load, threads, stop)) for _ in range(jobs - 1)]
    # Ctrl-C reaches this process, which stops them: one that is still starting would answer it with a traceback.
    with ignored_interrupts():
        for other in others:
            other.start()
    if others:
        torch.set_num_threads(threads)
    try:
        work(source, display)
    except BaseException as error:
        stop.set()
        for other in others:
            if other.pid is not None and other.is_alive():
                os.kill(other.pid, _stopping_signal(error))
        raise
    finally:
        for other in others:
            other.join()
    for other in others:
        if other.exitcode is not None and other.exitcode < 0:  # which it could not tell itself
            name = signal.Signals(-other.exitcode).name
            display.warn(f"another process was ended by {name} (out of memory?); its work was done by the rest")


def _stopping_signal(error: BaseException) -> int:
    """At which the others save what they do, when this one ends with an error.

    Never the one that stopped this process: it may have reached all of them, and a second of its kind ends them at once.
    """
    stopped_by = error.signal_number if isinstance(error, InterruptedRunError) else None
    return int(signal.SIGUSR1 if stopped_by == signal.SIGTERM and hasattr(signal, "SIGUSR1") else signal.SIGTERM)


_stop: Event | None = None
"""In one of the others: set when the first process wants them to stop."""


def _other(work: Work, load: Callable[[], Source], threads: int, stop: Event) -> None:
    global _stop
    _stop = stop
    torch.set_num_threads(threads)
    display = _Watching(quiet=True)
    try:
        work(load(), display)
    except InterruptedRunError as error:  # the first process tells of it
        raise SystemExit(error.exit_code) from error
    except (AalpError, OSError) as error:
        display.warn(str(error))
        raise SystemExit(AalpError.exit_code) from error


class _Watching(Display):
    """Shows nothing, and looks after each attacked batch whether the process still has somebody to work for."""

    def attack(self, name: str, done: int, total: int) -> None:
        stop_if_left()


def stop_if_left() -> None:
    """To be called now and then in `side_by_side`, by what may be one of the others.

    Raises:
        InterruptedRunError: the process that began this one is gone or failed: nobody waits for its work.
    """
    parent = multiprocessing.parent_process()
    if (parent is not None and not parent.is_alive()) or (_stop is not None and _stop.is_set()):
        raise InterruptedRunError(int(signal.SIGTERM), command_line())


@contextmanager
def claim(directory: RunDirectory, ranks: Ranks) -> Iterator[bool]:
    """Whether this command alone works on a run while it is in here. Together."""
    with ExitStack() as stack:
        yield ranks.from_main(lambda: stack.enter_context(claimed(directory.config)))


@contextmanager
def alone_at(directory: RunDirectory, ranks: Ranks = ALONE) -> Iterator[None]:
    """No other command works on a run while this one is in here. Together.

    Raises:
        RunError: one does already.
    """
    with claim(directory, ranks) as mine:
        if not mine:
            raise RunError(f"another process is at work on '{directory.path}': wait until it is done, or stop it")
        yield


def share_out(
    runs: Mapping[Key, RunDirectory], begin: Callable[[Key], None], work: Callable[[Key], None], display: Display, ranks: Ranks
) -> None:
    """Work on every run, one after the other; those that other processes are at come last, when they have let go of them.

    Together.

    Args:
        begin: makes the run directory, or finds it in order.
        work: called for every run; what others have done has to be nothing to do for it.

    Raises:
        DivergedError: of the first run whose training diverged, once all others are done.
    """
    left, told = list(runs), False
    diverged: DivergedError | None = None
    while left:
        busy = []
        for key in left:
            stop_if_left()
            begin(key)
            with claim(runs[key], ranks) as mine:
                if not mine:
                    busy.append(key)
                    continue
                try:
                    work(key)
                except DivergedError as error:
                    name = runs[key].path.name
                    diverged = diverged or DivergedError(f"all is done but {name}, which diverged: {error}")
                    display.warn(f"{name} diverged: {error}")
        if len(busy) == len(left):
            if not told:
                display.say(f"waiting for other processes, which are at {', '.join(runs[key].path.name for key in busy)}")
                told = True
            with stopping(command_line()):
                time.sleep(POLL_SECONDS)
        left = busy
    if diverged is not None:
        raise diverged
