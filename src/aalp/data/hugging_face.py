"""Data sets in the Hugging Face format: a folder that `save_to_disk` made, one of Parquet files, or a name on their hub.

The rows stay memory-mapped and are decoded by us: an image that is a file has to lie inside the data set's folder, and
none is fetched from elsewhere.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aalp.data.arrays import check_every_class
from aalp.data.folder import split_names, split_rows
from aalp.data.images import Layout, decode, decoding_like
from aalp.data.split import ResidentSplit
from aalp.data.stored import RowSplit, stored_image
from aalp.errors import DataError, first_line

EXTRA = 'datasets is not installed: pip install "aalp[hf]"'


@dataclass(frozen=True)
class Table:
    """A data set's splits with what is needed to read them.

    Attributes:
        splits: the Hugging Face data sets by what they are to us: train, test, maybe validation.
        image: column of the images.
        label: column of the labels.
        classes: names of the classes, where the data set has them.
        root: its folder; None for one from the hub.
        name: what errors call it.
    """

    splits: dict[str, Any]
    image: str
    label: str
    classes: tuple[str, ...] | None
    root: Path | None
    name: str


def open_rows(
    name: str, label_column: str | None, layout: Layout, test_share: float, seed: int
) -> tuple[dict[str, RowSplit], tuple[str, ...]]:
    """The splits by name, and the classes, of a data set whose rows stay where they are.

    Raises:
        DataError: it cannot be opened, or has no column of images or of labels.
    """
    table = _open(name, label_column, streaming=False)
    values = {
        split: [_value(value, row, table) for row, value in enumerate(rows[table.label])]
        for split, rows in table.splits.items()
    }
    classes = table.classes or _classes(values["train"], table, whole=True)
    labels = {split: _labels(column, table, classes) for split, column in values.items()}
    rows = {split: torch.arange(len(found)) for split, found in labels.items()}
    if "test" not in labels:
        parts = split_rows(labels["train"].tolist(), classes, test_share, seed, name)
        rows["train"], rows["test"] = (torch.tensor(part) for part in parts)
    first = stored_image(table.splits["train"][0][table.image], f"{name} row 0", table.root)
    decoding = decoding_like(*first, layout)
    splits: dict[str, RowSplit] = {}
    for split, chosen in rows.items():
        stored = split if split in labels else "train"
        splits[split] = RowSplit(
            labels[stored][chosen], decoding, table.splits[stored], table.image, chosen, table.root, f"{name} {stored}"
        )
    return splits, classes


def stream(
    name: str, label_column: str | None, layout: Layout, most: int | None, limit: float, seed: int
) -> tuple[dict[str, ResidentSplit], tuple[str, ...]]:
    """The splits by name, and the classes, decoded into memory as they come in; nothing is written to the disk.

    Args:
        most: images of each split, drawn from the first ones (1,000 more than are wanted); by default all.
        limit: bytes that the decoded images may take.

    Raises:
        DataError: as for `open_rows`, or more images than the limit allows.
    """
    table = _open(name, label_column, streaming=True)
    if "test" not in table.splits:
        raise DataError(f"'{name}' has no test split to stream: leave out --data_options.streaming")
    splits: dict[str, ResidentSplit] = {}
    classes, decoding, left = table.classes, None, limit
    for split in sorted(table.splits, key=("train", "validation", "test").index):
        rows = table.splits[split]
        images, values = [], []
        try:
            for number, row in enumerate(_sample(rows, most, seed) if most else rows):
                file, called = stored_image(row[table.image], f"{name} {split} row {number}", table.root)
                decoding = decoding or decoding_like(file, called, layout)
                images.append(decode(file, called, decoding))
                values.append(_value(row[table.label], number, table))
                left -= images[-1].nbytes
                if left < 0:
                    raise DataError(
                        f"'{name}' takes more than {limit / 1e9:g} GB as it streams in: give --data_options.images, a smaller "
                        "size, a larger memory_limit, or leave out streaming"
                    )
        except DataError:
            raise
        except Exception as error:  # what comes over a network breaks in many ways
            raise DataError(f"'{name}' cannot be streamed: {first_line(error)}; try again") from error
        if not images:
            raise DataError(f"'{name}' has no images in its {split} split: name a source with at least one")
        classes = classes or _classes(values, table, whole=most is None)
        splits[split] = ResidentSplit(torch.from_numpy(np.stack(images)), _labels(values, table, classes))
    assert classes is not None
    return splits, classes


def _sample(rows: Any, most: int, seed: int) -> list[Any]:
    """Rows by chance: those of one class may come one after the other."""
    first = list(itertools.islice(rows, most + 1000))
    return random.Random(seed).sample(first, min(most, len(first)))


def _open(name: str, label_column: str | None, streaming: bool) -> Table:
    place = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not place.is_dir():
        raise DataError(f"there is no folder '{name}': name one that save_to_disk made, or a data set on the hub")
    datasets = _datasets()
    with _quiet(datasets):
        try:
            if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
                if streaming:
                    raise DataError(f"'{name}' lies on the disk and is memory-mapped: leave out --data_options.streaming")
                found = datasets.load_from_disk(str(place))
            else:
                found = datasets.load_dataset(str(place) if place.is_dir() else name, streaming=streaming)
        except DataError:
            raise
        except Exception as error:  # missing files, no network, foreign formats: many kinds
            raise DataError(
                f"Hugging Face data set '{name}' cannot be loaded: {first_line(error)}; name a folder that save_to_disk made, "
                "or a data set on the hub"
            ) from error
    by_name = dict(found) if isinstance(found, dict) else {"train": found}
    names = split_names(by_name) or {"train": "train"}
    if names["train"] not in by_name:
        raise DataError(f"'{name}' has the splits {', '.join(by_name)}: train is needed")
    features = by_name[names["train"]].features
    image = next((column for column, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise DataError(f"'{name}' has the columns {', '.join(features)}, none of them of images: cast one to datasets.Image")
    label = _label_column(name, features, label_column, datasets)
    kind = features[label]
    classes = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    splits = {ours: by_name[theirs].cast_column(image, datasets.Image(decode=False)) for ours, theirs in names.items()}
    return Table(splits, image, label, classes, place if place.is_dir() else None, name)


def _label_column(name: str, features: Any, wanted: str | None, datasets: Any) -> str:
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [column for column in ("label", "labels") if column in features]
    if wanted is not None:
        found = [column for column in features if column == wanted]
    else:
        found = labels if len(labels) == 1 else named[:1]
    if not found:
        raise DataError(
            f"'{name}' has the columns {', '.join(features)}: say which one has the labels with --data_options.label_column"
        )
    return str(found[0])


def _value(value: Any, row: int, table: Table) -> int | str:
    """A label as a whole number or as text; false and true are 0 and 1."""
    if isinstance(value, str):
        return value
    if not isinstance(value, int):
        remedy = "remove the row" if value is None else "make the labels whole numbers or text"
        raise DataError(f"'{table.name}' row {row} has the label {value!r}: {remedy}")
    return int(value)


def _classes(values: list[int | str], table: Table, whole: bool) -> tuple[str, ...]:
    """The names of the classes of labels without any: text in alphabetical order, or 0..C-1.

    Args:
        whole: whether these are all training labels, so that none may be left out.
    """
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) < len(values):
        return tuple(sorted({str(value) for value in values}))
    if whole and min(numbers) >= 0:
        check_every_class(torch.tensor(numbers), f"'{table.name}'")
    return tuple(str(label) for label in range(max(numbers) + 1))


def _labels(values: list[int | str], table: Table, classes: tuple[str, ...]) -> torch.Tensor:
    places = {name: label for label, name in enumerate(classes)}
    found = [value if isinstance(value, int) else places.get(str(value), -1) for value in values]
    wrong = next((row for row, label in enumerate(found) if not 0 <= label < len(classes)), None)
    if wrong is not None:
        raise DataError(f"'{table.name}' row {wrong} has the label {values[wrong]!r}: one of {len(classes)} classes is needed")
    if len(classes) < 2:
        raise DataError(f"'{table.name}' has labels of {len(classes)} class: at least 2 classes are needed")
    return torch.tensor(found)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(EXTRA) from error
    return datasets


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own bars."""
    shown: Callable[[], bool] = datasets.utils.are_progress_bars_disabled
    before = shown()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()
