"""Atomic writes: a reader sees the old file or folder or the new one, never a torn one."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aalp.errors import RunError

ASIDE = ".partial"
"""How the names of files end that are not whole yet."""


def write_atomically(path: Path, content: bytes | bytearray | memoryview) -> None:
    """Write aside, flush to disk, rename over the target, flush the folder.

    A process that is killed in between leaves the old file as it was, and a `.NAME.*.partial` beside it.

    Raises:
        RunError: the disk is full or the folder cannot be written to; the old file is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=ASIDE)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; a result is as readable as any other file of the user.
            os.chmod(aside, 0o666 & ~umask())
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise RunError(f"'{path}' could not be written: {error.strerror}; free space or choose another folder") from error


def check_writable(folder: Path, remedy: str) -> None:
    """Refuse a folder that nothing can be written to, before the work whose results are to go there; nothing is made.

    Raises:
        RunError: it, or where it would have to be made, is read-only for this user.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise RunError(f"'{folder}' cannot be written to, '{there}' is read-only: {remedy}")


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what writes that were killed half-way left in a folder; nothing else is touched.

    Args:
        name: only of files whose names begin so.

    Raises:
        RunError: one cannot be removed.
    """
    for path in folder.glob(f".{glob.escape(name)}*{ASIDE}"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file that we made, if it is there.

    Raises:
        RunError: the folder cannot be changed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"'{path}' could not be removed: {error.strerror}; make its folder writable") from error


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no other process is in here for the same file, which has to exist; one that dies lets go of it.

    Always true where the file system or the system has no locks.
    """
    with _locked(path, wait=False) as mine:
        yield mine


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process is in here for the same folder; one that is killed lets the next in.

    Without effect where the file system or the system has no locks on folders.

    Raises:
        RunError: the folder is not there and cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"'{folder}' cannot be made: {error.strerror}; choose another folder") from error
    with _locked(folder, wait=True):
        yield


@contextmanager
def aside_of(folder: Path) -> Iterator[Path]:
    """A new folder beside the one to be made, so that a rename is all that is left to do; removed if that is not done.

    What a process left that was killed while it made the same folder goes first.

    Raises:
        RunError: it cannot be made.
    """
    with ExitStack() as stack:
        try:
            with alone_in(folder.parent):
                for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{ASIDE}"):
                    with claimed(left) as dead:
                        if dead and left.is_dir():
                            shutil.rmtree(left)
                aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=ASIDE))
                stack.enter_context(claimed(aside))
            aside.chmod(0o777 & ~umask())  # mkdtemp makes folders private
        except OSError as error:
            raise RunError(f"'{folder}' cannot be made: {error.strerror}; choose another --out") from error
        try:
            yield aside
        finally:
            if aside.exists():
                shutil.rmtree(aside)


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    """Holds the lock on a file or a folder, and says whether it does: false only where another process has it already."""
    if os.name == "nt":
        yield True
        return
    import fcntl

    # A file to write to, if allowed: a network file system locks nothing that is open to read only.
    handle = os.open(path, os.O_RDWR if path.is_file() and os.access(path, os.W_OK) else os.O_RDONLY)
    try:
        mine = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            mine = False
        except OSError:  # no locks here
            pass
        yield mine
    finally:
        os.close(handle)


def umask() -> int:
    """The permissions that new files of this process do without."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no folder handles to flush
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
