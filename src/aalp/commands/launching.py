"""`--devices N`: one process a device on this machine, as torchrun would start them, but with aalp's exit codes and errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aalp.errors import OptionError, RankLostError
from aalp.stopping import handled, stopping_signals

POLL_SECONDS = 0.05
ECHO_SECONDS = 2.0
"""How long after a process that lost another one its cause may take to show."""
SAVE_SECONDS = 60.0
"""How long the others may take to save when one has ended because it was told to stop."""

PARENT_PIPE = "AALP_PARENT_PIPE"
"""The variable that names the file descriptor which closes when the launcher dies."""


def is_rank() -> bool:
    """Whether this process is one of several, whoever started them."""
    return os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1"


def several(devices: int, nodes: int) -> bool:
    """Whether these options ask for more than one process.

    Raises:
        OptionError: a count below 1.
    """
    for name, count in (("devices", devices), ("nodes", nodes)):
        if count < 1:
            raise OptionError(f"{name} is {count}: it has to be at least 1")
    return devices * nodes > 1


@contextmanager
def as_rank() -> Iterator[None]:
    """The life of one of several processes: it ends with the launcher, and says so in a line if it loses another one.

    Raises:
        RankLostError: another process ended while this one waited for it.
    """
    from aalp.distributed import is_lost, leave

    _follow_launcher()
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise RankLostError(
            f"process {os.environ.get('RANK', '?')} lost another one, whose own error tells why; what was saved is whole: "
            "go on with --resume, or with the same command"
        ) from error
    leave()


def launch(command: Sequence[str], devices: int, nodes: int = 1) -> int:
    """Run a command in `devices` processes here, of `devices` x `nodes` in all; returns the exit code.

    When one dies, the others are ended at once, and the exit code is its own. SIGINT, SIGTERM and SIGUSR1 are passed
    on to all of them.

    Raises:
        OptionError: several machines, and the environment does not say where they meet.
    """
    environment = _environment(devices, nodes)
    # Nothing is ever written to it: where it ends, this process has died, and those that it started follow.
    reading, writing = os.pipe()
    processes = []
    try:
        first = int(environment["GROUP_RANK"]) * devices
        for local_rank in range(devices):
            own = {"RANK": str(first + local_rank), "LOCAL_RANK": str(local_rank), PARENT_PIPE: str(reading)}
            processes.append(
                # A session of its own: what the terminal sends (Ctrl-C) comes once, through here.
                subprocess.Popen(command, env={**environment, **own}, pass_fds=(reading,), start_new_session=True)
            )
        return _watch(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        os.close(reading)
        os.close(writing)


def _environment(devices: int, nodes: int) -> dict[str, str]:
    given = os.environ
    environment = dict(given)
    if nodes > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not given.get(name)]
        if missing:
            raise OptionError(
                f"nodes is {nodes} and {missing[0]} is not set: set MASTER_ADDR, MASTER_PORT and NODE_RANK (0 to {nodes - 1}) "
                "on each machine, or start the processes with torchrun or srun"
            )
        if not given["NODE_RANK"].isdecimal() or int(given["NODE_RANK"]) >= nodes:
            raise OptionError(f"NODE_RANK is '{given['NODE_RANK']}' and nodes is {nodes}: number the machines from 0")
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        if sys.platform == "linux":  # a machine whose name leads nowhere, or to the network, still meets itself
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    environment["GROUP_RANK"] = given["NODE_RANK"] if nodes > 1 else "0"
    environment |= {"WORLD_SIZE": str(devices * nodes), "LOCAL_WORLD_SIZE": str(devices)}
    # Each process would take all cores, and all of them would wait for one another.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    # The stack traces that torch warns with when a process is gone say nothing to whoever reads the error itself.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return environment


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all to end well, or for the first that does not; its exit code."""

    def forward(number: int, _frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    with handled(forward):
        while True:
            codes = [process.poll() for process in processes]
            if all(code == 0 for code in codes):
                return 0
            if any(code not in (None, 0) for code in codes):
                return _first_failure(processes)
            time.sleep(POLL_SECONDS)


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of the process that failed by itself, not because it lost that one; told if it could not say so."""
    started = time.monotonic()
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or any(code not in (None, 0, RankLostError.exit_code, *_stopped()) for code in codes):
            break
        # Where one was told to stop, all were.
        patience = SAVE_SECONDS if any(code in _stopped() for code in codes) else ECHO_SECONDS
        if time.monotonic() - started > patience:
            break
        time.sleep(POLL_SECONDS)
    failed = [(rank, code) for rank, code in enumerate(process.poll() for process in processes) if code not in (None, 0)]
    # Its own error before the echo of it, and before a stop that was asked for.
    rank, code = min(failed, key=lambda found: (found[1] == RankLostError.exit_code, found[1] in _stopped()))
    assert code is not None
    if code >= 0:
        return code
    if -code in stopping_signals():  # so early that nothing was there to be saved
        return 128 - code
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    print(
        f"aalp: process {rank} was ended by {name}{hint}, and the others with it: what was saved is whole, go on with --resume",
        file=sys.stderr,
    )
    return 128 - code


def _stopped() -> list[int]:
    """The exit codes of a process that was told to stop, and did."""
    return [128 + number for number in stopping_signals()]


def _follow_launcher() -> None:
    """Ask this process to stop when the launcher dies, however it dies: nobody else would."""
    if PARENT_PIPE not in os.environ:
        return
    reading = int(os.environ.pop(PARENT_PIPE))

    def wait() -> None:
        os.read(reading, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
