from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from aalp.data.arrays import check_images
from aalp.data.images import Decoding, Resizing, decode
from aalp.data.sources import DataOptions, Source, load_source
from aalp.data.split import ResidentSplit, as_float
from aalp.data.torchvision_sets import TORCHVISION
from aalp.errors import DataError, OptionError

Arrays = dict[str, np.ndarray]


@pytest.fixture
def source_of(tmp_path: Path) -> Callable[..., Source]:
    """Writes arrays as an .npz and loads it as a source."""

    def load(arrays: Arrays, **options: Any) -> Source:
        np.savez(tmp_path / "data.npz", **arrays)
        return load_source(f"npz:{tmp_path / 'data.npz'}", DataOptions(**options))

    return load


def pixels(split: Any) -> Tensor:
    assert isinstance(split, ResidentSplit)
    return split.pixels


def test_digits_are_those_of_scikit_learn_split_without_overlap() -> None:
    from sklearn.datasets import load_digits

    source = load_source("digits")

    splits = (source.train, source.validation, source.test)
    ours = torch.cat([as_float(pixels(split)) for split in splits]).flatten(1)
    labels = torch.cat([split.labels for split in splits])
    theirs, their_labels = load_digits(return_X_y=True)
    key = torch.from_numpy(theirs / 16).float()
    # Rounded to the pixel steps of uint8, each image occurs exactly as often as in the original.
    assert sorted(map(tuple, torch.column_stack([ours * 16, labels]).round().tolist())) == sorted(
        map(tuple, torch.column_stack([key * 16, torch.from_numpy(their_labels)]).round().tolist())
    )
    assert len(source.test) == 500
    assert len(source.validation) == (1797 - 500) // 10
    assert source.classes == tuple("0123456789")
    assert source.image_shape == (1, 8, 8)
    assert all(len(split.labels.unique()) == 10 for split in splits)


def test_the_same_source_is_loaded_the_same_every_time() -> None:
    first, second = load_source("digits"), load_source("digits")
    for one, other in ((first.train, second.train), (first.validation, second.validation), (first.test, second.test)):
        assert torch.equal(pixels(one), pixels(other))
        assert torch.equal(one.labels, other.labels)
    assert first.digest == second.digest


def test_the_split_seed_moves_validation_images_and_nothing_else() -> None:
    first, second = (load_source("digits", DataOptions(split_seed=seed)) for seed in (0, 1))
    assert not torch.equal(pixels(first.validation), pixels(second.validation))
    assert torch.equal(pixels(first.test), pixels(second.test))
    assert first.digest == second.digest
    together = [torch.cat([pixels(source.train), pixels(source.validation)]).flatten(1) for source in (first, second)]
    assert sorted(together[0].tolist()) == sorted(together[1].tolist())


@pytest.mark.parametrize(
    ("asked", "train", "validation"),
    [(0, 100, 0), (4, 96, 4), (40, 60, 40), (99, 1, 99), (None, 90, 10)],
)
def test_validation_takes_what_is_asked_for_and_a_tenth_unasked(
    asked: int | None, train: int, validation: int, tiny_arrays: Callable[..., Arrays], source_of: Callable[..., Source]
) -> None:
    source = source_of(tiny_arrays(train=100), validation=asked)
    assert (len(source.train), len(source.validation)) == (train, validation)


@pytest.mark.parametrize("split_seed", range(20))
def test_validation_leaves_an_image_of_every_class_to_train_on(split_seed: int, source_of: Callable[..., Source]) -> None:
    arrays = {"x_train": np.zeros((24, 8, 8)), "x_test": np.zeros((3, 8, 8)), "y_test": np.arange(3)}
    source = source_of({**arrays, "y_train": np.array([0] * 20 + [1] * 2 + [2] * 2)}, validation=20, split_seed=split_seed)
    assert len(source.validation) == 20
    assert sorted(set(source.train.labels.tolist())) == [0, 1, 2]
    together = torch.cat([source.train.labels, source.validation.labels])
    assert torch.bincount(together).tolist() == [20, 2, 2]


def test_validation_cannot_take_every_image(tiny_arrays: Callable[..., Arrays], source_of: Callable[..., Source]) -> None:
    with pytest.raises(OptionError, match=r"validation is 100: .* has only 100 training images"):
        source_of(tiny_arrays(train=100), validation=100)


@pytest.mark.parametrize(
    ("stored", "to_channels_first"),
    [
        ((5, 8, 6), lambda x: x[:, None]),
        ((5, 8, 6, 1), lambda x: x.transpose(0, 3, 1, 2)),
        ((5, 8, 6, 3), lambda x: x.transpose(0, 3, 1, 2)),
        ((5, 1, 8, 6), lambda x: x),
        ((5, 3, 8, 6), lambda x: x),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_an_npz_may_store_channels_first_last_or_not_at_all(
    stored: tuple[int, ...],
    to_channels_first: Callable[[np.ndarray], np.ndarray],
    kind: type,
    source_of: Callable[..., Source],
) -> None:
    images = np.random.default_rng(0).integers(0, 256, stored).astype(kind)
    if kind is not np.uint8:
        images = images / 255
    labels = np.arange(5) % 2
    source = source_of({"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}, validation=0)
    wanted = to_channels_first(images)
    assert source.image_shape == wanted.shape[1:]
    assert pixels(source.test).dtype == (torch.uint8 if kind is np.uint8 else torch.float32)
    np.testing.assert_array_equal(pixels(source.test).numpy(), wanted.astype(pixels(source.test).numpy().dtype))


@pytest.mark.parametrize("resizing", ["stretch", "crop"])
@pytest.mark.parametrize(("channels", "kind"), [(1, np.uint8), (3, np.uint8), (3, np.float32)])
def test_arrays_are_resized_as_files_are(
    resizing: Resizing, channels: int, kind: type, tmp_path: Path, source_of: Callable[..., Source]
) -> None:
    blobs = np.random.default_rng(0).integers(0, 256, (4, 6, channels)).astype(np.uint8)
    image = Image.fromarray(blobs.squeeze()).resize((48, 32))
    image.save(tmp_path / "0.png")
    wanted = decode(tmp_path / "0.png", "0", Decoding((channels, 12, 12), resizing)).astype(float)
    images = np.repeat(np.asarray(image).reshape(1, 32, 48, channels).transpose(0, 3, 1, 2), 4, 0)
    if kind is np.float32:
        images, wanted = images.astype(np.float32) / 255, wanted / 255
    labels = np.arange(4) % 2
    source = source_of(
        {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}, validation=0, size=12, resizing=resizing
    )
    assert source.image_shape == (channels, 12, 12)
    found = pixels(source.test)
    assert found.dtype == (torch.uint8 if kind is np.uint8 else torch.float32)
    off = abs(found.double().numpy() - wanted) * (1 if kind is np.uint8 else 255)
    assert off[..., 1:-1].max() <= 2
    assert off.max() <= 10  # beside a crop Pillow sees the pixels that are cropped


def test_digits_are_resized_too_as_far_as_the_memory_goes() -> None:
    assert load_source("digits", DataOptions(size=16)).image_shape == (1, 16, 16)
    assert load_source("digits", DataOptions(size=8, memory_limit=0)).image_shape == (1, 8, 8)
    with pytest.raises(
        DataError, match=r"'digits' takes 0\.1 GB at size 256, and memory_limit is 0\.1: .*data_options\.images"
    ):
        load_source("digits", DataOptions(size=256, memory_limit=0.1))
    assert load_source("digits", DataOptions(size=256, memory_limit=0.1, images=100)).image_shape == (1, 256, 256)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_labels_may_be_any_integers_in_a_row_or_a_column(
    kind: type, tiny_arrays: Callable[..., Arrays], source_of: Callable[..., Source]
) -> None:
    arrays = tiny_arrays()
    column = {**arrays, "y_train": arrays["y_train"].astype(kind)[:, None], "y_test": arrays["y_test"].astype(kind)}
    source = source_of(column, validation=0)
    assert source.train.labels.dtype == source.test.labels.dtype == torch.int64
    assert source.train.labels.tolist() == arrays["y_train"].tolist()
    assert source.classes == ("0", "1", "2")


@pytest.mark.parametrize("changed", ["x_train", "y_train", "x_test", "y_test"])
def test_the_digest_sees_a_single_changed_value(
    changed: str, tiny_arrays: Callable[..., Arrays], source_of: Callable[..., Source]
) -> None:
    before = source_of(tiny_arrays()).digest
    assert source_of(tiny_arrays()).digest == before
    arrays = tiny_arrays()
    arrays[changed].flat[-1] = (arrays[changed].flat[-1] + 1) % 3
    assert source_of(arrays).digest != before


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_sets_are_downloaded_to_the_cache_and_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download is torchvision's own; here its place is taken by arrays of the shapes and fields of the real sets."""
    colour, count = name not in ("MNIST", "FashionMNIST"), 20
    asked: list[tuple[str, bool]] = []

    def dataset(root: str, download: bool, train: bool | None = None, split: str | None = None) -> Any:
        training = train if split is None else split == "train"
        asked.append((root, download, training))
        random = np.random.default_rng(int(training))
        shape = (count, 3, 32, 32) if name == "SVHN" else (count, 32, 32, 3) if colour else (count, 28, 28)
        data = random.integers(0, 256, shape).astype(np.uint8)
        labels = [number % 10 for number in range(count)]

        class Set:
            pass

        made = Set()
        made.data = data if colour else torch.from_numpy(data)
        if name == "SVHN":
            made.labels = np.array(labels)
        else:
            made.targets = labels if colour else torch.tensor(labels)
            made.classes = [f"class {label}" for label in range(10)]
        return made

    monkeypatch.setattr(datasets, name, dataset)
    source = load_source(f"torchvision:{name}", DataOptions(cache=tmp_path, validation=0))

    assert asked == [(str(tmp_path), True, True), (str(tmp_path), True, False)]
    assert source.image_shape == ((3, 32, 32) if colour else (1, 28, 28))
    assert source.test.labels.tolist() == [number % 10 for number in range(count)]
    assert len(source.classes) == 10
    first = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3) if name.startswith("CIFAR") else (1,))
    if name.startswith("CIFAR"):
        assert pixels(source.test)[3, 2, 5, 7] == first[3, 5, 7, 2]


def test_a_failed_download_names_the_set_the_cache_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(datasets, "MNIST", fail)
    with pytest.raises(DataError, match=f"MNIST could not be downloaded to {tmp_path}: no route to host; try again"):
        load_source("torchvision:MNIST", DataOptions(cache=tmp_path))


def test_a_source_needs_a_name_that_can_be_written() -> None:
    with pytest.raises(DataError, match=r"'folder:\\xe9' has a name that is not UTF-8, .*: rename it"):
        load_source("folder:" + os.fsdecode(b"\xe9"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3}, "data size is 3"),
        ({"size": 5000}, "data size is 5000"),
        ({"test_share": 0.0}, "data test_share is 0"),
        ({"test_share": 1.0}, "data test_share is 1"),
        ({"validation": -1}, "data validation is -1"),
        ({"workers": -1}, "data workers is -1"),
        ({"memory_limit": -1.0}, "data memory_limit is -1"),
        ({"memory_limit": float("nan")}, "data memory_limit is nan"),
    ],
)
def test_data_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DataOptions(**options)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 1, 1]), "2 images and 3 labels"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), "no images"),
        (torch.zeros(2, 4, 4), torch.tensor([0, 1]), r"shape \(2, 4, 4\)"),
        (torch.full((2, 1, 4, 4), 1.01), torch.tensor([0, 1]), r"\[1.01, 1.01\]: scale"),
        (torch.full((2, 1, 4, 4), -0.01), torch.tensor([0, 1]), r"\[-0.01, -0.01\]: scale"),
        (torch.full((2, 1, 4, 4), torch.nan), torch.tensor([0, 1]), "image 0 has a value that is not finite"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0.0, 1.0]), "torch.float32"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([False, True]), "torch.bool"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]), r"label 2: labels have to be 0\.\.1"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([-1, 2]), r"label -1: labels have to be 0\.\.1"),
    ],
)
def test_images_and_labels_that_cannot_be_used_are_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=f"the batch has .*{message}|the batch {message}"):
        check_images(images, labels, 2, "the batch")


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 4, 4), torch.ones(2, 3, 4, 4), torch.zeros(2, 1, 4, 4).byte()])
def test_images_at_the_ends_of_the_range_are_fine(images: Tensor) -> None:
    check_images(images, torch.tensor([0, 1]), 2, "the batch")


def test_mnist_is_read_from_the_file_of_keras(shared_data: Path) -> None:
    source = load_source(f"npz:{shared_data / 'mnist.npz'}")
    assert source.image_shape == (1, 28, 28)
    assert (len(source.train), len(source.validation), len(source.test)) == (59_000, 1_000, 10_000)
    assert source.classes == tuple("0123456789")
    with np.load(shared_data / "mnist.npz") as archive:
        assert torch.equal(pixels(source.test)[:, 0], torch.from_numpy(archive["x_test"]))
        assert source.test.labels.tolist() == archive["y_test"].tolist()


def test_pixels_of_an_npz_that_are_out_of_range_by_rounding_are_cut_to_it(tmp_path):
    # As resizing makes them of white float images.
    images, labels = np.full((6, 8, 8), 1 + 2.4e-7, np.float32), np.arange(6) % 3
    np.savez(tmp_path / "white.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    source = load_source(f"npz:{tmp_path / 'white.npz'}", DataOptions(validation=0))
    assert float(source.test.read(torch.arange(6)).max()) == 1.0


def test_images_of_other_channels_than_grey_and_colour_are_not_turned_into_those(source_of: Callable[..., Source]) -> None:
    planes = np.zeros((6, 4, 8, 8), np.uint8)
    arrays = {"x_train": planes, "x_test": planes, "y_train": np.arange(6) % 2, "y_test": np.arange(6) % 2}
    for channels in (1, 3):
        with pytest.raises(DataError, match=rf"channels is {channels} and the images have 4: only grey and RGB"):
            source_of(arrays, channels=channels)
