"""CSV files of image paths and labels, with a column `split` or without."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from aalp.data.folder import VALIDATION, opened, split_files
from aalp.data.images import Layout
from aalp.data.split import Loaded
from aalp.errors import DataError

PATH_COLUMNS = ("path", "image", "file", "file_name", "filename")
"""How the column of the paths may be called; the labels' column is `label` unless the options name another."""


def open_csv(file: Path, root: Path | None, label_column: str, layout: Layout, test_share: float, seed: int) -> Loaded:
    """The images that a CSV lists: a header with path, label and maybe split (train, test, validation), a row an image.

    Classes are the different labels in alphabetical order, or by number where all are whole numbers.

    Args:
        root: folder that the paths are relative to, and that none may lead out of; by default the CSV's own.
        label_column: name of the labels' column.

    Raises:
        DataError: the file cannot be read, lacks a column, names a file that is missing or lies outside, or has one class.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, strict=True)
            numbered: dict[int, dict[str, str]] = {}
            for row in reader:
                # Empty lines are no rows and are counted all the same, by the reader inside alone.
                numbered[reader.reader.line_num] = row
            header = list(reader.fieldnames or ())
    except FileNotFoundError as error:
        raise DataError(f"there is no file '{file}': name a CSV with the columns path and label") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"'{file}' is not a readable CSV: {error}; save it as UTF-8 text") from error
    path_column, found = _column(header, *PATH_COLUMNS), _column(header, label_column)
    if path_column is None or found is None:
        lacking = "path" if path_column is None else label_column
        raise DataError(f"'{file}' has the columns {', '.join(header) or 'of nothing'}: a column {lacking} is needed")
    label_column, split_column = found, _column(header, "split")
    numbers, rows = list(numbered), list(numbered.values())
    # Blanks around a label make no class of their own.
    told = [(row[label_column] or "").strip() for row in rows]
    if "" in told:
        raise DataError(f"'{file}' line {numbers[told.index('')]} has no {label_column}: give every image one")
    names = sorted(set(told), key=_by_number if all(map(str.isdecimal, told)) else None)
    if len(names) < 2:
        raise DataError(f"'{file}' has {len(names)} classes: at least 2 are needed")
    places = {name: label for label, name in enumerate(names)}
    folder = (file.parent if root is None else root).expanduser()
    inside = Path(os.path.realpath(folder))
    paths = [_inside(folder, inside, row[path_column], f"'{file}' line {number}") for number, row in numbered.items()]
    labels = [places[name] for name in told]
    if split_column is None:
        return split_files(paths, labels, tuple(names), layout, test_share, seed, str(file))
    splits = {number: str(row[split_column]).strip().lower() for number, row in numbered.items()}
    files = _by_split(file, splits, paths, labels)
    untrained = sorted(set(labels) - set(files["train"][1]))
    if untrained:
        raise DataError(f"'{file}' has no training images of class '{names[untrained[0]]}': give it some")
    return opened(files, tuple(names), layout)


def _column(header: Sequence[str], *names: str) -> str | None:
    """The first of these columns that the header has, in upper or in lower case."""
    columns = {name.strip().lower(): name for name in header} | {name: name for name in header}
    return next((columns[key] for name in names for key in (name, name.lower()) if key in columns), None)


def _by_split(
    file: Path, splits: dict[int, str], paths: list[Path], labels: list[int]
) -> dict[str, tuple[list[Path], list[int]]]:
    """Paths and labels by the names of the splits that the lines of these numbers say."""
    files: dict[str, tuple[list[Path], list[int]]] = {}
    for (number, split), path, label in zip(splits.items(), paths, labels, strict=True):
        name = "validation" if split in VALIDATION else split
        if name not in ("train", "test", "validation"):
            raise DataError(f"'{file}' line {number} has '{split}' as split: train, test or validation is needed")
        of_split = files.setdefault(name, ([], []))
        of_split[0].append(path)
        of_split[1].append(label)
    if "test" not in files and "validation" in files:
        files["test"] = files.pop("validation")
    if not {"train", "test"} <= files.keys():
        raise DataError(f"'{file}' has no {'train' if 'train' not in files else 'test'} images in its column split: give some")
    return files


def _inside(folder: Path, inside: Path, name: str | None, where: str) -> Path:
    if not name:
        raise DataError(f"{where} has no path: give every image one")
    path = folder / name
    try:
        # Not Path.resolve, which raises an error of its own at links in a circle.
        leads_out, is_file = not Path(os.path.realpath(path)).is_relative_to(inside), path.is_file()
    except (OSError, ValueError) as error:  # names that are too long, characters that no path has
        raise DataError(f"{where} names {name!r}, which is no path: {error}; correct it") from error
    if leads_out:
        raise DataError(f"{where} names '{name}', which leads out of '{folder}': put it there, or give --data_options.root")
    if not is_file:
        raise DataError(
            f"{where} names '{name}', and there is no such file in '{folder}': correct it, or give --data_options.root"
        )
    return path


def _by_number(label: str) -> tuple[int, str]:
    return int(label), label
