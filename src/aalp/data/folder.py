"""Image folders: one folder a class, of any image format and size that Pillow reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from aalp.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Decoding, Layout, decoding_like
from aalp.data.paths import Paths, shown
from aalp.data.split import Loaded
from aalp.data.stored import FileSplit
from aalp.errors import DataError
from aalp.links import leads_outside

VALIDATION = ("validation", "val", "valid")
"""How a validation split is called."""


def open_folder(root: Path, layout: Layout, test_share: float, seed: int) -> Loaded:
    """Find the images of DIR/train/CLASS, DIR/test/CLASS and maybe DIR/val/CLASS, or of DIR/CLASS, split by the seed.

    Where there is no test/ but a val/, as ImageNet has it, that is the test split: validation images are then held
    out of the training ones.

    Args:
        root: the folder.
        layout: how images are decoded.
        test_share: share of the images of each class that goes to the test split, where there is none.
        seed: of that split.

    Raises:
        DataError: no folder, no images, classes that differ between the splits, or an unreadable first image.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder '{root}': name one with train/ and test/, or with one folder a class")
    names = split_names(path.name for path in _folders(root))
    if names is None:
        _refuse_splits(root)
        paths, labels, classes = _listing(root)
        return split_files(paths, labels, classes, layout, test_share, seed, str(root))
    listed = {split: _listing(root / name) for split, name in names.items()}
    classes = listed["train"][2]
    for split, (_, _, own) in listed.items():
        if own != classes:
            odd, both = ", ".join(sorted(set(classes) ^ set(own))), f"{names['train']}/ than in {names[split]}/"
            raise DataError(f"'{root}' has other classes in {both}: {odd} is only in one of them")
    return opened({split: (paths, labels) for split, (paths, labels, _) in listed.items()}, classes, layout)


def _refuse_splits(root: Path) -> None:
    """Splits that go by names of their own would be taken for classes, and their classes for nothing.

    Raises:
        DataError: two folders have no images of their own, but two or more folders of the same names, and one is called as
            splits are.
    """
    inside = {
        folder: {path.name for path in _folders(folder)}
        for folder in _folders(root)
        if not any(_is_image(path) and not _hidden(path.name) for path in folder.iterdir())
    }
    for one, other in itertools.combinations(inside, 2):
        shared = sorted(inside[one] & inside[other])
        # Else they may be classes, each with pictures from the same cameras.
        if len(shared) > 1 and any(folder.name.lower().startswith(SPLIT_LIKE) for folder in (one, other)):
            raise DataError(
                f"'{one}' and '{other}' both have folders {shared[0]} and {shared[1]}, as splits have: call them train/, val/ "
                "and test/; or list the images in a CSV if they are classes"
            )


SPLIT_LIKE = ("train", "test", "val", "dev", "eval", "hold")
"""How the names of splits begin, in lower case."""


def split_names(found: Iterable[str]) -> dict[str, str] | None:
    """Which of these names stand for train, test and (if there is one) validation; None if they are no splits.

    Upper and lower case are the same; where a name is there in both, the lower one counts.
    """
    names = {name.lower(): name for name in sorted(found)}
    validation = next((names[name] for name in VALIDATION if name in names), None)
    test = names.get("test", validation)
    if "train" not in names or test is None:
        return None
    of_its_own = {} if validation in (None, test) else {"validation": str(validation)}
    return {"train": names["train"], "test": test} | of_its_own


def opened(files: Mapping[str, tuple[Sequence[Path], Sequence[int]]], classes: tuple[str, ...], layout: Layout) -> Loaded:
    """The splits of these files and labels."""
    decoding = _decoding(files["train"][0], layout)
    made = {split: FileSplit(torch.tensor(labels), decoding, Paths(paths)) for split, (paths, labels) in files.items()}
    return Loaded(made["train"], made["test"], classes, made.get("validation"))


def _decoding(paths: Sequence[Path], layout: Layout) -> Decoding:
    """How to decode images like the first one that can be read: the others are named when they are."""
    for path in paths[:100]:
        try:
            return decoding_like(path, str(path), layout)
        except DataError:
            continue
    return decoding_like(paths[0], str(paths[0]), layout)


def split_files(
    paths: Sequence[Path],
    labels: Sequence[int],
    classes: tuple[str, ...],
    layout: Layout,
    test_share: float,
    seed: int,
    name: str,
) -> Loaded:
    """Training and test split of files that have none of their own."""
    train, test = split_rows(labels, classes, test_share, seed, name)
    files = {
        split: ([paths[row] for row in rows], [labels[row] for row in rows])
        for split, rows in (("train", train), ("test", test))
    }
    return opened(files, classes, layout)


def split_rows(
    labels: Sequence[int], classes: Sequence[str], test_share: float, seed: int, name: str
) -> tuple[list[int], list[int]]:
    """Rows of the training and of the test split; each class is split by itself, so that both have all classes.

    Raises:
        DataError: a class has one image.
    """
    generator = torch.Generator().manual_seed(seed)
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        by_class.setdefault(label, []).append(row)
    in_test: set[int] = set()
    for label in sorted(by_class):
        rows = by_class[label]
        if len(rows) < 2:
            raise DataError(
                f"'{name}' has one image of class '{classes[label]}': add one (train and test need one each) or remove it"
            )
        count = min(len(rows) - 1, max(1, round(test_share * len(rows))))
        order = torch.randperm(len(rows), generator=generator)[:count].tolist()
        in_test |= {rows[position] for position in order}
    return [row for row in range(len(labels)) if row not in in_test], sorted(in_test)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _hidden(path.name))


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES


def _listing(root: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Images, labels and class names of the folders in `root`, none of which may be a link that leads out of it."""
    paths: list[Path] = []
    labels: list[int] = []
    folders = _folders(root)
    for label, folder in enumerate(folders):
        if shown(folder.name) != folder.name:
            raise DataError(
                f"'{shown(folder)}' has a name that is not UTF-8, and a class needs one that can be written: rename it"
            )
        # Hidden at any depth: macOS puts ._NAME beside each image, Jupyter copies into .ipynb_checkpoints.
        depth = len(folder.parts)
        inside = [folder, *(path for path in folder.rglob("*") if not any(map(_hidden, path.parts[depth:])))]
        for path in inside:
            if leads_outside(path, root):
                where = f"leads out of '{root}', or in a circle"
                raise DataError(f"'{path}' is a link that {where}: put the images themselves there")
        found = sorted(path for path in inside if _is_image(path) and path.is_file())
        if not found:
            raise DataError(f"'{folder}' has no images: remove the folder or put images ({_suffixes()}) into it")
        paths += found
        labels += [label] * len(found)
    if len(folders) < 2:
        remedy = "at least 2 folders with images are needed"
        if folders and len(_folders(folders[0])) > 1:  # train/ without test/, or a folder that an archive was unpacked to
            remedy += f"; name '{folders[0]}' if its folders are the classes"
        raise DataError(f"'{root}' has {len(folders)} class folders: {remedy}")
    return paths, labels, tuple(folder.name for folder in folders)


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
