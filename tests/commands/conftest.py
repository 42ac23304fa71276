"""A working directory for commands with bad input, and a finished comparison."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from bad_input import FACTORIES

from aalp.cli import main


@pytest.fixture
def folder(tmp_path: Path, tiny_npz: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with tiny.npz, a finished run `done`, and a module of model factories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copy(tiny_npz, tmp_path / "tiny.npz")
    shutil.copytree(tiny_run, tmp_path / "done")
    (tmp_path / "bad_factories.py").write_text(FACTORIES)
    yield tmp_path
    sys.modules.pop("bad_factories", None)


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory, train_words: list[str]) -> tuple[Path, list[str]]:
    """A finished comparison of two objectives with two seeds, and its command line; not to be written to."""
    run = tmp_path_factory.mktemp("compare") / "run"
    words = ["compare", *train_words[1:], "--run", str(run), "--objectives", "at,aalp", "--seeds", "0,1"]
    words += ["--evaluation.attacks", "fgsm,pgd-2"]
    assert main(words) == 0
    return run, words


@pytest.fixture
def copied_comparison(comparison: tuple[Path, list[str]], tmp_path: Path) -> tuple[Path, list[str]]:
    """The finished comparison once more, to be written to, and its command line."""
    run, words = comparison
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    return copy, [str(copy) if word == str(run) else word for word in words]


@pytest.fixture
def unread() -> Iterator[IO[str]]:
    """A pipe to write to whose reader went away."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    yield stream
    with suppress(BrokenPipeError):
        stream.close()
