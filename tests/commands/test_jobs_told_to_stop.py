from __future__ import annotations

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from aalp import stopping
from aalp.commands.console import Display
from aalp.commands.side_by_side import side_by_side
from aalp.data.sources import Source
from aalp.errors import InterruptedRunError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows does not fork, and has no signals that a process may note")


def work(folder: Path, number: int, _source: Source, _display: Display) -> None:
    """In the other process a step that takes long and is saved then; here, once that is under way, a signal to both."""
    if multiprocessing.parent_process() is None:
        deadline = time.monotonic() + 60
        while not (folder / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for other in multiprocessing.active_children():
            os.kill(int(other.pid or 0), number)
        time.sleep(0.1)
        raise InterruptedRunError(number, "aalp compare")
    with stopping.noted_signals() as received:
        (folder / "begun").touch()
        while not received:
            time.sleep(0.01)
        time.sleep(0.3)
    (folder / "saved").touch()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_what_the_others_do_is_saved_where_a_signal_reaches_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ECHO_SECONDS", -1.0)
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _method: forking)
    none = cast(Any, None)
    with pytest.raises(InterruptedRunError):
        side_by_side(2, partial(work, tmp_path, signal.Signals[name]), none, lambda: none, Display(quiet=True))
    assert (tmp_path / "saved").exists()
