from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from aalp.errors import RunError
from aalp.store.files import claimed, write_atomically


def test_a_file_is_written_with_the_folders_that_it_needs_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "file.bin"
    write_atomically(path, b"first")
    assert path.read_bytes() == b"first"
    write_atomically(path, b"second, longer")
    assert path.read_bytes() == b"second, longer"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_is_as_readable_as_the_user_wants_new_files_to_be(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"content")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_keeps_the_old_file_and_says_so(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(RunError, match=f"'{path}' could not be written: No space left on device; free space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_while_writing_keeps_the_old_file_and_goes_on_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(RunError, match=r"file/inside' could not be written: .*choose another folder"):
        write_atomically(tmp_path / "file" / "inside", b"content")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks of this kind: every claim is granted")
def test_a_file_is_claimed_by_one_at_a_time_and_free_again_afterwards(tmp_path: Path) -> None:
    path, other = tmp_path / "config.yaml", tmp_path / "other.yaml"
    path.write_text("seed: 0\n")
    other.write_text("seed: 1\n")
    with claimed(path) as first, claimed(path) as second, claimed(other) as elsewhere:
        assert (first, second, elsewhere) == (True, False, True)
    with claimed(path) as again:
        assert again
    assert path.read_text() == "seed: 0\n"


def test_where_nothing_can_be_locked_everybody_may_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows has no locks of this kind")

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "file").touch()
    with claimed(tmp_path / "file") as mine:
        assert mine
