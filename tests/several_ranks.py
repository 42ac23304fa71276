"""Runs a function in several processes that share their work through gloo, forked so that nothing is imported again."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aalp.distributed import Ranks, joined, leave


def in_ranks(size: int, work: Callable[[Ranks], Any], seconds: float = 120) -> list[Any]:
    """What `work` returns on each rank; a rank that raises fails the test with its traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        pids = [_fork(rank, size, port, Path(folder), work) for rank in range(size)]
        deadline = time.monotonic() + seconds
        waiting = set(pids)
        failed = False
        while waiting and not failed and time.monotonic() < deadline:
            for pid in list(waiting):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    waiting.discard(pid)
                    failed |= status != 0
            time.sleep(0.01)
        time.sleep(0.5 if failed else 0)  # for the others' tracebacks
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        told = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
        if failed or waiting:
            raise AssertionError("\n".join(told) or f"not done after {seconds} s")
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(size)]  # noqa: S301


def _fork(rank: int, size: int, port: int, folder: Path, work: Callable[[Ranks], Any]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, from Python 3.12 on
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
        result = work(joined())
        (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
        leave()
        code = 0
    except BaseException:
        (folder / f"error-{rank}").write_text(f"rank {rank}: {traceback.format_exc()}")
    finally:
        os._exit(code)
    raise AssertionError
