"""Image files: opening them with the guards that strangers' files need, and decoding them to one shape."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from aalp.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file is read as, whatever its name says: other formats of Pillow's call other programs (EPS runs Ghostscript)."""

MOST_PIXELS = 50_000_000
"""More than any photograph: a small file can claim a size that fills the memory when it is decoded."""

# Pillow warns, in two lines, from a limit on that is above ours.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""How names of images end, in lower case."""

UNREAD_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl"})
"""How names of images end that are not read: such a file counts as an unreadable image, and is not passed over in silence."""

Resizing = Literal["stretch", "crop"]

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image upright, by its EXIF orientation; from 5 on, width and height change places."""


TINT = 16
"""How far, of 255, the channels of a grey pixel are apart at most: rounding parts them by a few."""


@dataclass(frozen=True)
class Layout:
    """How images are decoded.

    Attributes:
        size: height and width to resize to; by default all images have to be of one size.
        channels: 1 for grey, 3 for colour; by default as the first image is.
        resizing: stretch to the size, or scale the shorter side to it and crop the middle.
    """

    size: int | None = None
    channels: int | None = None
    resizing: Resizing = "stretch"


@dataclass(frozen=True)
class Decoding:
    """The shape that every image of a source is decoded to.

    Attributes:
        image_shape: (channels, height, width).
        resizing: how images of another size come to it; None refuses them.
        loses_colours: whether images in colour may become grey; not where grey is what the first image happens to be.
    """

    image_shape: tuple[int, int, int]
    resizing: Resizing | None
    loses_colours: bool = True


def decoding_like(first: Path | bytes, name: str, layout: Layout) -> Decoding:
    """How to decode a source whose first image is this one.

    Raises:
        DataError: it cannot be read.
    """
    with open_image(first, name) as image:
        grey = image.mode in ("1", "L", "I") or image.mode.startswith("I;16")
        # Pillow turns TIFF itself, its size from the start.
        width, height = image.size[::-1] if _lies(image) and image.format != "TIFF" else image.size
    channels, asked = layout.channels or (1 if grey else 3), layout.channels is not None
    if layout.size is None:
        return Decoding((channels, height, width), None, asked)
    return Decoding((channels, layout.size, layout.size), layout.resizing, asked)


def open_image(file: Path | bytes, name: str) -> Image.Image:
    """The image with its pixels still in the file; not more of them than an image has.

    Args:
        file: a path, or the content of a file.
        name: what errors call it.

    Raises:
        DataError: it is none, or it claims to be larger.
    """
    try:
        image = Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=FORMATS)
    except Exception as error:  # Pillow raises many kinds, a decompression bomb among them
        raise unreadable(name, error) from error
    if image.format == "TIFF":
        # Pillow maps a file of a name into memory in the size that a turned TIFF has once it is turned: that garbles it.
        image.filename = ""
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise DataError(f"'{name}' claims to be {width}x{height} pixels, more than {MOST_PIXELS:,}: remove or shrink it")
    return image


def unreadable(name: str, error: Exception) -> DataError:
    """The error for an image that Pillow stumbles over."""
    # What is read from memory has no name, and Pillow tells the object instead.
    reason = "cannot identify image file" if "BytesIO" in str(error) else error
    kind = Path(name).suffix.lower()
    if kind in UNREAD_SUFFIXES:
        return DataError(f"'{name}' is not a readable image: {kind} files are not read; save it as JPEG or PNG, or remove it")
    return DataError(f"'{name}' is not a readable image: {reason}; remove or replace it")


def decode(file: Path | bytes, name: str, decoding: Decoding) -> np.ndarray:
    """One image as (channels, height, width) uint8.

    Raises:
        DataError: the file cannot be read, or has another size and may not be resized, or colours and may not lose them.
    """
    channels, height, width = decoding.image_shape
    with open_image(file, name) as image:
        try:
            if decoding.resizing is not None:
                # JPEG decodes to a half, quarter or eighth at a fraction of the cost; twice the size keeps the quality.
                box = (2 * height, 2 * width) if _lies(image) else (2 * width, 2 * height)
                image.draft(None, box)
            original = eight_bit(upright(image))
            lost = channels == 1 and not decoding.loses_colours and in_colour(original)
            converted = original.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # as in open_image: here the pixels are read
            raise unreadable(name, error) from error
    if lost:
        raise DataError(
            f"'{name}' is in colour and the first image is grey: give --data_options.channels 3 to keep colours, 1 to drop them"
        )
    if converted.size != (width, height):
        if decoding.resizing is None:
            raise DataError(
                f"'{name}' is {converted.width}x{converted.height} pixels and the first image is {width}x{height}: "
                "give --data_options.size to resize all"
            )
        middle = _middle(converted.size, width / height) if decoding.resizing == "crop" else None
        converted = converted.resize((width, height), Image.Resampling.BILINEAR, box=middle)
    array = np.asarray(converted, dtype=np.uint8)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """The image as viewers show it: a camera that is held sideways stores the pixels lying, and says so beside them.

    Transparency that stands beside the pixels is dropped.
    """
    image.load()
    # Pillow would warn of dropping it, where a palette has an opacity for each colour.
    image.info.pop("transparency", None)
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _lies(image: Image.Image) -> bool:
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: Image.Image) -> int:
    # Not PIL.ImageOps.exif_transpose: it writes all other tags anew, and fails where a camera wrote one badly.
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken tags raise many kinds, and are no reason to refuse the pixels
        return 1


def in_colour(image: Image.Image) -> bool:
    """Whether an image has colours; grey stored as colour, JPEG's rounding of it included, has none."""
    if image.mode in ("1", "L", "LA"):
        return False
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool((pixels.max(2) - pixels.min(2)).max() > TINT)


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; Pillow's own conversion would cut everything above 255 to white.

    Raises:
        ValueError: 32 bits, of which Pillow would cut off likewise, or make black of 0 to 1.
    """
    if image.mode in ("F", "I") and (image.format, image.mode) != ("PPM", "I"):
        raise ValueError("32-bit pixels, of which nobody says where white is: save it with 8 or 16 bits")
    # Pillow opens a PGM of more than 8 bits with 32, scaled to 16.
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))


def _middle(size: tuple[int, int], ratio: float) -> tuple[float, float, float, float]:
    """The largest box (left, upper, right, lower) of this width to height in the middle of an image."""
    width, height = size
    inner_width, inner_height = (height * ratio, float(height)) if width > height * ratio else (float(width), width / ratio)
    left, upper = (width - inner_width) / 2, (height - inner_height) / 2
    return left, upper, left + inner_width, upper + inner_height
