"""Image folders: one folder a class, of any image format and size that Pillow reads."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aalp.data.paths import Paths
from aalp.data.split import ResidentSplit
from aalp.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file is read as, whatever its name says: other formats of Pillow's call other programs (EPS runs Ghostscript)."""

MOST_PIXELS = 50_000_000
"""More than any photograph: a small file can claim a size that fills the memory when it is decoded."""

# Pillow warns, in two lines, from a limit on that is above ours.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class FileSplit:
    """A split whose images stay on disk.

    Attributes:
        paths: the image files.
        labels: (N,) int64.
        image_shape: (channels, height, width) that every image is decoded to.
        resize: whether images of another size are resized to it, or refused.
    """

    paths: Paths
    labels: Tensor
    image_shape: tuple[int, int, int]
    resize: bool

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def decoded_bytes(self) -> int:
        channels, height, width = self.image_shape
        return len(self.paths) * channels * height * width

    def subset(self, indices: Tensor) -> FileSplit:
        return FileSplit(self.paths.select(indices), self.labels[indices], self.image_shape, self.resize)

    def read(self, indices: Tensor) -> Tensor:
        """Decoded images (n, channels, height, width), uint8."""
        pixels = np.empty((len(indices), *self.image_shape), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            pixels[row] = decode(self.paths[index], self.image_shape, self.resize)
        return torch.from_numpy(pixels)

    def decode(self) -> ResidentSplit:
        """All images in memory, decoded in parallel."""
        pixels = np.empty((len(self), *self.image_shape), dtype=np.uint8)

        def fill(row: int) -> None:
            pixels[row] = decode(self.paths[row], self.image_shape, self.resize)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, range(len(self))))
        return ResidentSplit(torch.from_numpy(pixels), self.labels)


@dataclass(frozen=True)
class Folder:
    """An opened image folder."""

    train: FileSplit
    test: FileSplit
    classes: tuple[str, ...]


def open_folder(root: Path, size: int | None, test_share: float, seed: int) -> Folder:
    """Find the images of DIR/train/CLASS and DIR/test/CLASS, or of DIR/CLASS, split by the seed.

    Args:
        root: the folder.
        size: height and width to resize to; by default all images have to be of one size.
        test_share: share of the images of each class that goes to the test split, where there is no test/.
        seed: of that split.

    Raises:
        DataError: no folder, no images, classes that differ between the splits, or an unreadable first image.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder '{root}': name one with train/ and test/, or with one folder a class")
    named = {path.name for path in _folders(root)}
    if "train" in named and "test" in named:
        (train_paths, train_labels, classes), (test_paths, test_labels, test_classes) = (
            _listing(root / split) for split in ("train", "test")
        )
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise DataError(f"'{root}' has other classes in train/ than in test/: {', '.join(odd)} is only in one of them")
    else:
        paths, labels, classes = _listing(root)
        train_paths, train_labels, test_paths, test_labels = _split(paths, labels, test_share, seed, root)
    shape = _image_shape(train_paths[0], size)
    train = FileSplit(Paths(train_paths), torch.tensor(train_labels), shape, size is not None)
    test = FileSplit(Paths(test_paths), torch.tensor(test_labels), shape, size is not None)
    return Folder(train, test, classes)


def decode(path: Path, image_shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """One image file as (channels, height, width) uint8.

    Raises:
        DataError: the file cannot be read, or has another size and may not be resized.
    """
    channels, height, width = image_shape
    try:
        with _open(path) as image:
            converted = _eight_bit(image).convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds, a decompression bomb among them
        raise DataError(f"'{path}' is not a readable image: {error}; remove or replace it") from error
    if converted.size != (width, height):
        if not resize:
            raise DataError(
                f"'{path}' is {converted.width}x{converted.height} pixels and the first image is {width}x{height}: "
                "give --data_options.size to resize all"
            )
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(converted, dtype=np.uint8)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _open(path: Path) -> Image.Image:
    """The image with its pixels still in the file; not more of them than an image has.

    Raises:
        DataError: it claims to be larger.
    """
    image = Image.open(path, formats=FORMATS)
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise DataError(f"'{path}' claims to be {width}x{height} pixels, more than {MOST_PIXELS:,}: remove or shrink it")
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; Pillow's own conversion would cut everything above 255 to white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _listing(root: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Images, labels and class names of the folders in `root`, none of which may be a link that leads out of it."""
    paths: list[Path] = []
    labels: list[int] = []
    folders = _folders(root)
    for label, folder in enumerate(folders):
        inside = [folder, *folder.rglob("*")]
        for path in inside:
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise DataError(f"'{path}' is a link that leads out of '{root}': put the images themselves there")
        found = sorted(path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not found:
            raise DataError(f"'{folder}' has no images: remove the folder or put images ({_suffixes()}) into it")
        paths += found
        labels += [label] * len(found)
    if len(folders) < 2:
        raise DataError(f"'{root}' has {len(folders)} class folders: at least 2 folders with images are needed")
    return paths, labels, tuple(folder.name for folder in folders)


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))


def _split(
    paths: list[Path], labels: list[int], test_share: float, seed: int, root: Path
) -> tuple[list[Path], list[int], list[Path], list[int]]:
    """Each class is split by itself, so that both splits have all classes."""
    generator = torch.Generator().manual_seed(seed)
    in_test: set[int] = set()
    for label in sorted(set(labels)):
        rows = [row for row, other in enumerate(labels) if other == label]
        if len(rows) < 2:
            raise DataError(f"'{root}' has one image of class {label}: at least 2 are needed to split it into train and test")
        count = min(len(rows) - 1, max(1, round(test_share * len(rows))))
        order = torch.randperm(len(rows), generator=generator)[:count].tolist()
        in_test |= {rows[position] for position in order}
    train = [row for row in range(len(paths)) if row not in in_test]
    test = sorted(in_test)
    return [paths[r] for r in train], [labels[r] for r in train], [paths[r] for r in test], [labels[r] for r in test]


def _image_shape(first: Path, size: int | None) -> tuple[int, int, int]:
    try:
        with _open(first) as image:
            channels = 1 if image.mode in ("1", "L") or image.mode.startswith("I;16") else 3
            width, height = image.size
    except DataError:
        raise
    except Exception as error:  # as in decode
        raise DataError(f"'{first}' is not a readable image: {error}; remove or replace it") from error
    return (channels, height, width) if size is None else (channels, size, size)
