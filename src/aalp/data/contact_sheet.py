"""A contact sheet: a few images of every class on one PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from aalp.data.check import THUMBNAIL

GAP, NAMES, LINE = 6, 190, 14
"""Pixels between pictures, for the names, and for a line of text."""

MOST_CLASSES = 60


def contact_sheet(
    title: str, classes: Sequence[str], images: Mapping[int, Sequence[Image.Image]], counts: Sequence[int]
) -> bytes:
    """A PNG with a row a class: its name, how many training images it has, and some of them.

    Of more than 60 classes, 60 are shown, evenly through the list.
    """
    shown = list(range(len(classes)))
    if len(shown) > MOST_CLASSES:
        shown = [round(place * (len(classes) - 1) / (MOST_CLASSES - 1)) for place in range(MOST_CLASSES)]
        title += f" ({MOST_CLASSES} of {len(classes)} classes)"
    columns = max([len(images.get(label, ())) for label in shown], default=0) or 1
    cell = THUMBNAIL + GAP
    font = ImageFont.load_default(LINE - 2)
    width = max(NAMES + columns * cell + GAP, 2 * GAP + round(font.getlength(title)))
    sheet = Image.new("RGB", (width, 4 * GAP + LINE + len(shown) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, "black", font)
    for row, label in enumerate(shown):
        top = 3 * GAP + LINE + row * cell
        draw.text((GAP, top + THUMBNAIL // 2 - LINE), _cut(classes[label], font), "black", font)
        draw.text((GAP, top + THUMBNAIL // 2), f"{counts[label]:,} training images", "#566170", font)
        for column, image in enumerate(images.get(label, ())):
            larger = _enlarged(image)
            left = NAMES + column * cell + (THUMBNAIL - larger.width) // 2
            sheet.paste(larger, (left, top + (THUMBNAIL - larger.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _enlarged(image: Image.Image) -> Image.Image:
    """Tiny images several times their size, with their pixels to be seen."""
    times = max(1, THUMBNAIL // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _cut(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = name
    while text and font.getlength(text + "...") > NAMES - 2 * GAP:
        text = text[:-1]
    return name if text == name else text + "..."
