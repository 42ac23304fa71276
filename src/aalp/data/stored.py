"""Splits whose images stay where they are stored, as files or as rows of a table, and are decoded when they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aalp.data.images import Decoding, decode, open_image
from aalp.data.paths import Paths, shown
from aalp.data.split import ResidentSplit
from aalp.errors import DataError


@dataclass(frozen=True)
class StoredSplit:
    """What both kinds share.

    Attributes:
        labels: (N,) int64.
        decoding: the shape that every image is decoded to.
    """

    labels: Tensor
    decoding: Decoding

    def encoded(self, index: int) -> tuple[Path | bytes, str]:
        """The file of an image, or its content, and what to call it."""
        raise NotImplementedError

    def fingerprint(self) -> bytes:
        """What tells this split's images from others without decoding them."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.decoding.image_shape

    @property
    def decoded_bytes(self) -> int:
        channels, height, width = self.image_shape
        return len(self) * channels * height * width

    def original(self, index: int) -> Image.Image:
        """An image as it is stored, of its own size, to be closed by the caller.

        Raises:
            DataError: it cannot be opened.
        """
        return open_image(*self.encoded(index))

    def read(self, indices: Tensor) -> Tensor:
        """Decoded images (n, channels, height, width), uint8."""
        pixels = np.empty((len(indices), *self.image_shape), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            pixels[row] = decode(*self.encoded(index), self.decoding)
        return torch.from_numpy(pixels)

    def decode(self, tick: Callable[[int], None] = lambda done: None) -> ResidentSplit:
        """All images in memory, decoded in parallel.

        Args:
            tick: called with how many are done.
        """
        pixels = np.empty((len(self), *self.image_shape), dtype=np.uint8)

        def fill(row: int) -> None:
            pixels[row] = decode(*self.encoded(row), self.decoding)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(fill, range(len(self))), 1):
                tick(done)
        return ResidentSplit(torch.from_numpy(pixels), self.labels)


@dataclass(frozen=True)
class FileSplit(StoredSplit):
    """A split whose images are files.

    Attributes:
        paths: of the images.
    """

    paths: Paths

    def encoded(self, index: int) -> tuple[Path | bytes, str]:
        return self.paths[index], shown(self.paths[index])

    def subset(self, indices: Tensor) -> FileSplit:
        return replace(self, labels=self.labels[indices], paths=self.paths.select(indices))

    def fingerprint(self) -> bytes:
        lines = (f"{path.parent.name}/{path.name}:{path.stat().st_size}\n" for path in self.paths)
        return os.fsencode("".join(lines))


@dataclass(frozen=True)
class RowSplit(StoredSplit):
    """A split whose images are rows of a Hugging Face data set, mapped into memory.

    Attributes:
        table: the data set, with its images undecoded: {"bytes": ..., "path": ...}.
        column: of the images.
        rows: (N,) of the table.
        root: folder that images which are files have to lie in; None where there may be none.
        name: what errors call the data set.
    """

    table: Any
    column: str
    rows: Tensor
    root: Path | None
    name: str

    def encoded(self, index: int) -> tuple[Path | bytes, str]:
        row = int(self.rows[index])
        return stored_image(self.table[row][self.column], f"{self.name} row {row}", self.root)

    def subset(self, indices: Tensor) -> RowSplit:
        return replace(self, labels=self.labels[indices], rows=self.rows[indices])

    def fingerprint(self) -> bytes:
        # The rows as the library counts them: reading every image only to tell it from others would take minutes.
        about = f"{self.table._fingerprint}\n" if self.root is None else "".join(f"{length}\n" for length in self._lengths())
        return about.encode() + self.rows.numpy().tobytes()

    def _lengths(self) -> list[int | None]:
        """Bytes of each image of the table, none for one that is a file: read from Arrow's offsets alone."""
        import pyarrow.compute

        images = self.table.with_format("arrow")[:].column(self.column)
        lengths: list[int | None] = pyarrow.compute.binary_length(pyarrow.compute.struct_field(images, "bytes")).to_pylist()
        return lengths


def stored_image(value: Any, name: str, root: Path | None) -> tuple[Path | bytes, str]:
    """The content of an image in a data set, or its file where that lies inside the data set's folder, and its name.

    Raises:
        DataError: it has neither, or a file that lies elsewhere.
    """
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if isinstance(content, bytes):
        return content, name
    if not isinstance(path, str):
        raise DataError(f"'{name}' has no image: remove the row")
    if root is None or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise DataError(f"'{name}' is the file '{path}', which does not lie in the data set: put the images themselves there")
    return Path(path), path
