"""Data that cannot be trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bad_input import TRAIN, Case, Creates, arrays_with, both, empty_folder, floats, images, refused, text_file, with_value

ON_CHANGED = TRAIN + "--data npz:changed.npz"
FROM_FOLDER = TRAIN + "--data folder:pictures"
FROM_CSV = TRAIN + "--data csv:list.csv"

BAD_DATA: dict[str, Case] = {
    "a missing npz": (None, TRAIN + "--data npz:other.npz", ("'other.npz'", "x_train")),
    "pixels below 0": (
        arrays_with(x_train=lambda x: floats(x) - 0.5),
        ON_CHANGED,
        ("'changed.npz' train", "[-0.5, ", "scale them to [0, 1]"),
    ),
    "pixels above 1": (
        arrays_with(x_train=floats, x_test=lambda x: floats(x) * 255),
        ON_CHANGED,
        ("'changed.npz' test", ", 239]", "scale them to [0, 1]"),
    ),
    "a pixel that is not a number": (
        arrays_with(x_train=with_value(np.nan)),
        ON_CHANGED,
        ("image 3", "not finite", "clean the data"),
    ),
    "an infinite pixel": (arrays_with(x_test=with_value(np.inf)), ON_CHANGED, ("test image 3", "not finite")),
    "integer pixels that are not bytes": (
        arrays_with(x_train=lambda x: x.astype(np.int64)),
        ON_CHANGED,
        ("int64", "uint8", "[0, 1]"),
    ),
    "pixels without images": (arrays_with(x_train=lambda x: x.reshape(len(x), -1)), ON_CHANGED, ("(72, 64)", "height")),
    "one number in place of images": (
        arrays_with(x_test=lambda x: x.flatten()[0]),
        ON_CHANGED,
        ("'changed.npz' test has a single number as images", "one entry an image"),
    ),
    "one number in place of labels": (
        arrays_with(y_test=lambda y: y[0]),
        ON_CHANGED,
        ("'changed.npz' test has a single number as labels", "one entry an image"),
    ),
    "pixels with an alpha channel": (
        arrays_with(x_train=lambda x: np.repeat(x[..., None], 4, 3)),
        ON_CHANGED,
        ("'changed.npz' train", "(72, 8, 8, 4)", "drop the fourth channel, x[..., :3]"),
    ),
    "grey pixels with an alpha channel": (
        arrays_with(x_test=lambda x: np.repeat(x[..., None], 2, 3)),
        ON_CHANGED,
        ("'changed.npz' test", "8, 8, 2)", "drop alpha, x[..., :1]"),
    ),
    "a label below 0": (arrays_with(y_train=with_value(-1)), ON_CHANGED, ("label -1", "0..2")),
    "a label of the test images alone": (arrays_with(y_test=with_value(3)), ON_CHANGED, ("label 3", "0..2")),
    "only one class": (arrays_with(y_train=np.zeros_like, y_test=np.zeros_like), ON_CHANGED, ("class", "2")),
    "labels that are fractions": (arrays_with(y_train=lambda y: y + 0.5), ON_CHANGED, ("float64", "integers 0..C-1")),
    "labels from 1": (
        arrays_with(y_train=lambda y: y + 1, y_test=lambda y: y + 1),
        ON_CHANGED,
        ("no training image with the label 0 of 0..3", "subtract the lowest"),
    ),
    "labels with a gap": (
        arrays_with(y_train=lambda y: y + (y > 1), y_test=lambda y: y + (y > 1)),
        ON_CHANGED,
        ("no training image with the label 2 of 0..3", "number the classes anew"),
    ),
    "pixels of 0 and 1": (
        arrays_with(x_train=lambda x: (x > 127).astype(np.uint8)),
        ON_CHANGED,
        ("'changed.npz' train", "all 0 or 1", "multiply them by 255"),
    ),
    "labels that are text": (
        arrays_with(y_train=lambda y: y.astype(str)),
        ON_CHANGED,
        ("labels of type <U", "integers 0..C-1"),
    ),
    "labels one-hot": (arrays_with(y_train=lambda y: np.eye(3, dtype=int)[y]), ON_CHANGED, ("(72, 3)", "one integer")),
    "fewer labels than images": (
        arrays_with(y_train=lambda y: y[:70]),
        ON_CHANGED,
        ("72 images and 70 labels", "one label an image"),
    ),
    "no images": (arrays_with(x_test=lambda x: x[:0], y_test=lambda y: y[:0]), ON_CHANGED, ("test has no images",)),
    "other sizes to test on": (
        arrays_with(x_test=lambda x: x[:, :, :7]),
        ON_CHANGED,
        ("(1, 8, 8)", "(1, 8, 7)", "have to agree"),
    ),
    "images too small for the model": (
        arrays_with(x_train=lambda x: x[:, :3, :3], x_test=lambda x: x[:, :3, :3]),
        ON_CHANGED,
        ("3x3", "at least 4x4"),
    ),
    "an npz that lacks keys": (
        arrays_with(x_test=None, y_test=None),
        ON_CHANGED,
        ("lacks x_test, y_test", "x_train, y_train"),
    ),
    "an npz of objects": (
        arrays_with(y_train=lambda y: np.array([*y[:-1], Creates("executed")], dtype=object)),
        ON_CHANGED,
        ("'changed.npz'", "plain arrays"),
    ),
    "an npz that is none": (text_file("changed.npz", "x_train"), ON_CHANGED, ("'changed.npz'", "plain arrays")),
    "a missing folder": (None, FROM_FOLDER, ("'pictures'", "train/ and test/")),
    "an empty folder": (empty_folder("pictures"), FROM_FOLDER, ("'pictures'", "at least 2")),
    "one class folder": (images("pictures/cat"), FROM_FOLDER, ("'pictures' has 1 class folder", "at least 2")),
    "a class folder without images": (
        both(images("pictures/cat"), empty_folder("pictures/dog")),
        FROM_FOLDER,
        ("'pictures/dog' has no images", "remove the folder", ".png"),
    ),
    "a class of one image": (
        both(
            images("pictures/cat", "pictures/dog"),
            lambda folder: [(folder / "pictures/dog" / f"{number}.png").unlink() for number in (0, 1)],
        ),
        FROM_FOLDER,
        ("one image of class 'dog'", "add one"),
    ),
    "classes that differ between the splits": (
        images(*(f"pictures/{name}" for name in ("train/cat", "train/dog", "test/cat", "test/cow"))),
        FROM_FOLDER,
        ("'pictures'", "cow, dog"),
    ),
    "splits of other names": (
        images(*(f"pictures/{name}" for name in ("train/cat", "train/dog", "dev/cat", "dev/dog"))),
        FROM_FOLDER,
        ("'pictures/dev' and 'pictures/train' both have folders cat and dog", "call them train/, val/ and test/"),
    ),
    "a train folder with an empty test folder": (
        both(images("pictures/train/cat", "pictures/train/dog"), empty_folder("pictures/test")),
        FROM_FOLDER,
        ("'pictures/test'",),
    ),
    "an unreadable image": (
        both(images("pictures/cat", "pictures/dog"), text_file("pictures/dog/1.png", "no picture")),
        FROM_FOLDER,
        ("'pictures/dog/1.png' is not a readable image", "remove or replace it"),
    ),
    "an unreadable first image": (
        both(images("pictures/cat", "pictures/dog"), text_file("pictures/cat/00.png", "no picture")),
        FROM_FOLDER,
        ("'pictures/cat/0", "is not a readable image", "remove or replace it"),
    ),
    "an unreadable image that stays on disk": (
        both(images("pictures/cat", "pictures/dog"), text_file("pictures/dog/1.png", "no picture")),
        FROM_FOLDER + " --data_options.memory_limit 0 --data_options.workers 0 --training.batch_size 1",
        ("'pictures/dog/1.png' is not a readable image", "remove or replace it"),
    ),
    "images of several sizes": (
        images("pictures/cat", "pictures/dog*"),
        FROM_FOLDER,
        ("9x8", "8x8", "--data_options.size"),
    ),
    "a missing CSV": (None, FROM_CSV, ("no file 'list.csv'", "path and label")),
    "a CSV without labels": (
        text_file("list.csv", "path,kind\na.png,cat\n"),
        FROM_CSV,
        ("path, kind", "column label is needed"),
    ),
    "a CSV that names a missing file": (
        text_file("list.csv", "path,label\na.png,cat\nb.png,dog\n"),
        FROM_CSV,
        ("'list.csv' line 2 names 'a.png'", "no such file", "--data_options.root"),
    ),
    "a CSV with an image without label": (
        both(images("cat"), text_file("list.csv", "path,label\ncat/0.png,cat\ncat/1.png,\n")),
        FROM_CSV,
        ("'list.csv' line 3 has no label",),
    ),
    "a CSV with a split of its own invention": (
        both(images("cat"), text_file("list.csv", "path,label,split\ncat/0.png,cat,dev\ncat/1.png,dog,test\n")),
        FROM_CSV,
        ("line 2 has 'dev' as split", "train, test or validation"),
    ),
    "a missing Hugging Face data set": (None, TRAIN + "--data hf:./missing", ("no folder './missing'", "save_to_disk")),
    "a Hugging Face folder without data": (
        empty_folder("empty"),
        TRAIN + "--data hf:./empty",
        ("'./empty' cannot be loaded", "save_to_disk"),
    ),
    "a stream of something else": (
        None,
        TRAIN + "--data npz:tiny.npz --data_options.streaming true",
        ("'npz:tiny.npz' is no Hugging Face data set",),
    ),
    "a root of what is no CSV": (
        None,
        TRAIN + "--data npz:tiny.npz --data_options.root pictures",
        ("root is 'pictures' and 'npz:tiny.npz' is no CSV", "leave it out"),
    ),
    "a column of what has none": (
        None,
        "data npz:tiny.npz --data_options.label_column kind",
        ("label_column is 'kind' and 'npz:tiny.npz' has no columns", "leave it out"),
    ),
    "arrays resized beyond the memory": (
        None,
        TRAIN + "--data npz:tiny.npz --data_options.size 4096 --data_options.memory_limit 0.5",
        ("'npz:tiny.npz' takes", "GB at size 4096", "a smaller size"),
    ),
    "one image of each split": (None, TRAIN + "--data npz:tiny.npz --data_options.images 1", ("images is 1", "at least 2")),
    "a check of a missing source": (None, "data folder:missing", ("no folder 'missing'", "train/ and test/")),
    "a check into an existing folder": (
        images("pictures/cat", "pictures/dog"),
        "data folder:pictures --out done",
        ("'done' exists already", "choose another --out"),
    ),
    "a size of nothing": (
        images("pictures/cat", "pictures/dog"),
        FROM_FOLDER + " --data_options.size 0",
        ("size is 0",),
    ),
    "a share of everything": (
        images("pictures/cat", "pictures/dog"),
        FROM_FOLDER + " --data_options.test_share 1",
        ("test_share is 1", "above 0 and below 1"),
    ),
}


@pytest.mark.parametrize("case", BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data_get_one_line_and_change_nothing(case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, folder, capfd)
