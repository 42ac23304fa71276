"""Several processes that work on the same runs: which of them is at which is told by a lock on the run's config.yaml.

The system takes a lock back when its process dies, however it dies, so that another one goes on with the run.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

from aalp.commands.console import Display, command_line
from aalp.data.sources import Source
from aalp.distributed import ALONE, Ranks
from aalp.errors import AalpError, InterruptedRunError, RunError
from aalp.store.files import claimed
from aalp.store.run import RunDirectory

Key = TypeVar("Key")

POLL_SECONDS = 1.0
"""How often a process that waits for others looks whether they are done."""

Work = Callable[[Source, Display], None]
"""What each of several processes does: it finds for itself what is left to be done. Others than the first unpickle it."""


def side_by_side(jobs: int, work: Work, source: Source, load: Callable[[], Source], display: Display) -> None:
    """Do work in this process and in jobs - 1 others, which share its threads.

    Args:
        load: what gives the others the source; they show no progress.

    Raises:
        InterruptedRunError: a signal arrived; what was under way is saved.
        AalpError: another process failed.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    others = [context.Process(target=_other, args=(work, load, threads)) for _ in range(jobs - 1)]
    for other in others:
        other.start()
    if others:
        torch.set_num_threads(threads)
    try:
        work(source, display)
    except BaseException:
        for other in others:  # SIGTERM: each saves what it does
            other.terminate()
        raise
    finally:
        for other in others:
            other.join()
    if any(other.exitcode for other in others):
        raise AalpError(f"another process failed: its line is above; go on with `{command_line()}`")


def _other(work: Work, load: Callable[[], Source], threads: int) -> None:
    torch.set_num_threads(threads)
    display = Display(quiet=True)
    try:
        work(load(), display)
    except AalpError as error:
        display.warn(str(error))
        raise SystemExit(error.exit_code) from error


def stop_if_orphaned() -> None:
    """To be called now and then in `side_by_side`: nobody waits for this process once the one that began it is gone.

    Raises:
        InterruptedRunError: it is.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise InterruptedRunError(15, command_line())


@contextmanager
def claim(directory: RunDirectory, ranks: Ranks = ALONE) -> Iterator[bool]:
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
    """
    left, told = list(runs), False
    while left:
        busy = []
        for key in left:
            stop_if_orphaned()
            begin(key)
            with claim(runs[key], ranks) as mine:
                if mine:
                    work(key)
                else:
                    busy.append(key)
        if len(busy) == len(left):
            if not told:
                display.say(f"waiting for other processes, which are at {', '.join(runs[key].path.name for key in busy)}")
                told = True
            time.sleep(POLL_SECONDS)
        left = busy
