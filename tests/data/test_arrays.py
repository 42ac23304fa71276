"""Labels of an array, by hand, and the arrays of an archive; what is refused of them is in `test_sources.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from aalp.data.arrays import largest_class, open_npz
from aalp.data.sources import DataOptions, load_source
from aalp.errors import DataError

Arrays = dict[str, np.ndarray]
MEDMNIST = {"x_train": "train_images", "y_train": "train_labels", "x_val": "val_images", "y_val": "val_labels"}


@pytest.fixture
def with_validation(tiny_arrays: Callable[..., Arrays]) -> Arrays:
    """Arrays whose 9 validation images are those of another seed."""
    own = tiny_arrays(test=9, seed=1)
    return {**tiny_arrays(), "x_val": own["x_test"], "y_val": own["y_test"]}


def test_the_best_constant_answer_by_hand() -> None:
    assert largest_class(torch.tensor([2, 0, 2, 1])) == 0.5
    assert largest_class(torch.tensor([], dtype=torch.int64)) == 0.0


@pytest.mark.parametrize("medmnist", [False, True])
def test_validation_images_of_an_archive_validate(medmnist: bool, with_validation: Arrays, tmp_path: Path) -> None:
    names = {**MEDMNIST, "x_test": "test_images", "y_test": "test_labels"} if medmnist else {}
    stored = {
        names.get(name, name): array[:, None] if medmnist and name.startswith("y") else array
        for name, array in with_validation.items()
    }
    np.savez(tmp_path / "own.npz", **stored)
    source = load_source(f"npz:{tmp_path / 'own.npz'}")
    for split, name in ((source.train, "train"), (source.validation, "val"), (source.test, "test")):
        assert split.labels.tolist() == with_validation[f"y_{name}"].tolist()
        np.testing.assert_array_equal(split.read(torch.arange(len(split)))[:, 0].numpy(), with_validation[f"x_{name}"])
    assert len(load_source(f"npz:{tmp_path / 'own.npz'}", DataOptions(validation=4)).validation) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_val": None}, "lacks y_val: it has x_train"),
        ({"y_val": np.arange(9) % 4}, "validation has the label 3: labels have to be 0..2"),
        ({"x_val": np.zeros((9, 6, 6), np.uint8)}, r"training images of \(1, 8, 8\) and validation images of \(1, 6, 6\)"),
    ],
)
def test_validation_images_are_checked_as_the_others_are(
    changes: dict[str, np.ndarray | None], message: str, with_validation: Arrays, tmp_path: Path
) -> None:
    arrays = {name: array for name, array in {**with_validation, **changes}.items() if array is not None}
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_npz(tmp_path / "own.npz")
