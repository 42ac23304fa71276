"""A look at a data source before it is trained on: counts, sizes, ranges, unreadable images, duplicates across splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from aalp.data.images import eight_bit, in_colour, unreadable, upright
from aalp.data.loaders import Tick
from aalp.data.split import Loaded, Split, as_float
from aalp.data.stored import StoredSplit
from aalp.errors import DataError

SIDE = 16
"""Height and width of the grey thumbnails that near duplicates are looked for in."""

NEAR = 0.995
"""Correlation of two thumbnails from which on they count as near duplicates: a copy saved anew or resized is above it."""

NEAR_SIDE = 2 * SIDE
"""Shorter side of an image from which on its thumbnail tells it from others: digits of 8x8 would all but equal each other."""

MOST_PAIRS = 4_000_000_000
"""Pairs of images up to which near duplicates are looked for: half a minute on two cores."""

THUMBNAIL = 64
"""Longest side of the images on the contact sheet."""

Done = TypeVar("Done")


@dataclass
class Seen:
    """What was seen of each image of a split; lists have an entry an image.

    Attributes:
        labels: the class of each.
        names: file or row.
        sizes: (width, height) as viewers show it, (0, 0) for an unreadable image.
        modes: Pillow's word for the kind of pixels.
        hashes: sha256 of the decoded pixels, "" for an unreadable image: equal for equal images, whatever the file format.
        errors: why an image is unreadable, by position.
        thumbnails: (N, 16 * 16) grey, uint8; 0 for images too small to be told from others by them.
        low, high, total, squares, pixels: of the values of all pixels in [0, 1].
        flat: images of one colour.
        losing: images in colour that training refuses, since the first one is grey and nobody said that all may become so.
        small: a few images of each class for the contact sheet.
    """

    labels: list[int]
    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    thumbnails: Tensor = field(default_factory=lambda: torch.empty(0, SIDE * SIDE, dtype=torch.uint8))
    low: float = 1.0
    high: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    pixels: int = 0
    flat: list[int] = field(default_factory=list)
    losing: list[int] = field(default_factory=list)
    small: dict[int, list[Image.Image]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Images that occur more than once.

    Attributes:
        across: (split, position, other split, position) of equal images in two splits, the first of each only.
        within: how many images of each split repeat another one of it.
        contradictions: (split, position, other split, position) of equal images with different labels.
        near: (split, position, other split, position) of images that all but equal one of another split.
        near_skipped: whether there were too many pairs to look for those.
        too_small: how many images are too small to be told from others by their thumbnails.
    """

    across: list[tuple[str, int, str, int]]
    within: dict[str, int]
    contradictions: list[tuple[str, int, str, int]]
    near: list[tuple[str, int, str, int]]
    near_skipped: bool
    too_small: int


def look(loaded: Loaded, each: int, tick: Tick) -> dict[str, Seen]:
    """See every image of a source, split by split; an unreadable one is noted, and no reason to stop.

    Args:
        each: images of each class to keep for the contact sheet.
        tick: called with the split's name and how many images are done.
    """
    return {name: _look_at(name, split, each, tick) for name, split in loaded.splits.items()}


def _look_at(name: str, split: Split, each: int, tick: Tick) -> Seen:
    seen = Seen(split.labels.tolist())
    keeping = isinstance(split, StoredSplit) and split.image_shape[0] == 1 and not split.decoding.loses_colours
    kept: Counter[int] = Counter()
    thumbnails = np.zeros((len(split), SIDE * SIDE), np.uint8)  # memory that is not written to is not taken

    def one(index: int) -> tuple[str, Image.Image | DataError]:
        try:
            return _image(split, index)
        except DataError as error:
            return f"{name} image {index}", error

    for index, (called, image) in enumerate(_ahead(one, range(len(split)), os.cpu_count() or 1)):
        if index % 256 == 0:
            tick(name, index, len(split))
        seen.names.append(called)
        _note(seen, index, image)
        if isinstance(image, DataError):
            continue
        if min(image.size) >= NEAR_SIDE:
            thumbnails[index] = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)
        if keeping and in_colour(image):
            seen.losing.append(index)
        label = seen.labels[index]
        if kept[label] < each:
            kept[label] += 1
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            seen.small.setdefault(label, []).append(small)
    tick(name, len(split), len(split))
    seen.thumbnails = torch.from_numpy(thumbnails)
    return seen


def _ahead(work: Callable[[int], Done], rows: Iterable[int], threads: int) -> Iterator[Done]:
    """What the work makes of each row, in order, a row a thread ahead: large photographs are not to pile up in memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Done]] = deque()
        for row in rows:
            waiting.append(pool.submit(work, row))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _image(split: Split, index: int) -> tuple[str, Image.Image]:
    """An image of its own size, decoded, and its name; where the file's mode counts, as `image.info["mode"]`."""
    if not isinstance(split, StoredSplit):
        pixels = (as_float(split.read(torch.tensor([index])))[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] != 3 else pixels)
        image.info = {"mode": image.mode, "pixels": pixels}
        return str(index), image
    name = split.encoded(index)[1]
    with split.original(index) as stored:
        mode = stored.mode
        try:
            image = eight_bit(upright(stored))
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
        except Exception as error:  # the pixels are read here, and break in many ways
            raise unreadable(name, error) from error
    image.info = {"mode": mode}
    return name, image


def _note(seen: Seen, index: int, image: Image.Image | DataError) -> None:
    """Add an image to what is seen."""
    if isinstance(image, DataError):
        seen.errors[index] = str(image)
        seen.sizes.append((0, 0))
        seen.modes.append("unreadable")
        seen.hashes.append("")
        return
    pixels = image.info.get("pixels", np.asarray(image))  # of arrays with other channels than a picture's, all of them
    seen.sizes.append(image.size)
    seen.modes.append(str(image.info["mode"]))
    # Grey stored as colour is the same image.
    colours = np.asarray(image.convert("RGB")) if pixels.ndim == 2 or pixels.shape[2] in (1, 3) else pixels
    seen.hashes.append(hashlib.sha256(repr(image.size).encode() + colours.tobytes()).hexdigest())
    low, high = int(pixels.min()), int(pixels.max())
    seen.low, seen.high = min(seen.low, low / 255), max(seen.high, high / 255)
    flat = pixels.reshape(-1)
    seen.total += float(flat.sum(dtype=np.int64)) / 255
    seen.squares += float(np.einsum("i,i", flat, flat, dtype=np.int64)) / 255**2  # no float64 copy: eight times the image
    seen.pixels += flat.size
    if low == high:
        seen.flat.append(index)


def duplicates(seen: dict[str, Seen]) -> Found:
    """Images that occur in two splits, or more than once in one, by the hash of their pixels; near ones by thumbnails."""
    first: dict[str, tuple[str, int]] = {}
    across, contradictions = [], []
    within: Counter[str] = Counter()
    for split, images in seen.items():
        here: set[str] = set()
        for position, digest in enumerate(images.hashes):
            if digest == "":
                continue
            within[split] += digest in here
            before = first.setdefault(digest, (split, position))
            if before[0] != split and digest not in here:
                across.append((*before, split, position))
            if seen[before[0]].labels[before[1]] != images.labels[position]:
                contradictions.append((*before, split, position))
            here.add(digest)
    near, skipped = _near(seen)
    too_small = sum(0 < min(size) < NEAR_SIDE for images in seen.values() for size in images.sizes)
    return Found(across, {split: within[split] for split in seen}, contradictions, near, skipped, too_small)


def _near(seen: dict[str, Seen]) -> tuple[list[tuple[str, int, str, int]], bool]:
    """The pairs of images of different splits that all but equal each other, and whether there were too many to look."""
    names = list(seen)
    pairs = [(one, other) for at, one in enumerate(names) for other in names[at + 1 :]]
    if sum(len(seen[one].hashes) * len(seen[other].hashes) for one, other in pairs) > MOST_PAIRS:
        return [], True
    units = {name: _units(images) for name, images in seen.items()}
    found = []
    for one, other in pairs:
        (places, known), (positions, asked) = units[one], units[other]
        for start in range(0, len(asked) if len(known) else 0, 512):
            correlation, nearest = (asked[start : start + 512] @ known.T).max(1)
            for row in (correlation >= NEAR).nonzero()[:, 0].tolist():
                place, position = int(places[nearest[row]]), int(positions[start + row])
                if seen[one].hashes[place] != seen[other].hashes[position]:
                    found.append((one, place, other, position))
    return found, False


def _units(images: Seen) -> tuple[Tensor, Tensor]:
    """Positions of the images large enough to be told from others, and their thumbnails with the mean taken off, of length 1.

    Zero for those too flat.
    """
    large = torch.tensor([min(size) >= NEAR_SIDE for size in images.sizes], dtype=torch.bool).nonzero()[:, 0]
    centred = images.thumbnails[large].float() / 255
    centred -= centred.mean(1, keepdim=True)
    contrast = centred.square().mean(1, keepdim=True).sqrt() >= 0.02
    return large, F.normalize(centred, dim=1) * contrast


def imbalance(labels: Sequence[int], classes: int) -> float:
    """Images of the largest class for each of the smallest that has any."""
    counts = [count for count in np.bincount(labels, minlength=classes).tolist() if count]
    return max(counts) / min(counts) if counts else 1.0
