"""Paths of very many files, in the memory of their letters: a `Path` takes ten times as much."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from torch import Tensor


def shown(path: Path | str) -> str:
    """A path as text that can be written to any file and screen: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


class Paths(Sequence[Path]):
    """An immutable sequence of paths, kept as one run of bytes below their common folder.

    Worker processes are forked with it, and reading an array does not copy its pages as counting references does.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        try:
            common = os.path.commonpath([os.path.dirname(name) for name in names]) if names else b""
        except ValueError:  # absolute and relative ones have no folder in common
            common = b""
        self.folder = common + b"/" if common and not common.endswith(b"/") else common
        short = [name[len(self.folder) :] for name in names]
        self.ends = np.cumsum([0, *map(len, short)], dtype=np.int64)
        self.letters = np.frombuffer(b"".join(short), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> Path | Paths:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        start, end = self.ends[range(len(self))[index]], self.ends[range(len(self))[index] + 1]
        return Path(os.fsdecode(self.folder + self.letters[start:end].tobytes()))

    def __iter__(self) -> Iterator[Path]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and len(self) == len(other) and all(map(Path.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def select(self, indices: Tensor | np.ndarray) -> Paths:
        """The paths at these positions."""
        chosen = np.asarray(indices, dtype=np.int64)
        starts, lengths = self.ends[chosen], np.diff(self.ends)[chosen]
        made = Paths([])
        made.folder, made.ends = self.folder, np.cumsum([0, *lengths], dtype=np.int64)
        # Letter k of the result is letter k - (where its name begins there) + (where it begins here).
        made.letters = self.letters[np.arange(made.ends[-1]) + np.repeat(starts - made.ends[:-1], lengths)]
        return made
