"""Folders of images: splits, classes, names, digests, and what is refused."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import COLOURS, save

from aalp.data.folder import open_folder, split_names
from aalp.data.images import Decoding, Layout, decode
from aalp.data.sources import DataOptions, load_source
from aalp.data.split import ResidentSplit
from aalp.data.stored import FileSplit
from aalp.errors import DataError


def test_train_and_test_folders_become_the_splits_with_classes_in_alphabetical_order(image_folder: Path) -> None:
    folder = open_folder(image_folder, Layout(), test_share=0.5, seed=0)
    assert folder.classes == ("cat", "dog")
    assert folder.train.labels.tolist() == [0] * 20 + [1] * 20
    assert folder.test.labels.tolist() == [0] * 4 + [1] * 4
    assert folder.train.image_shape == (3, 8, 8)
    for split, name in ((folder.train, "train"), (folder.test, "test")):
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            assert path.parent == image_folder / name / folder.classes[label]


@pytest.mark.parametrize(("share", "in_test"), [(0.2, 4), (0.5, 10), (0.001, 1), (0.999, 19)])
def test_one_folder_is_split_class_by_class_so_that_both_splits_have_all(
    share: float, in_test: int, image_folder: Path
) -> None:
    folder = open_folder(image_folder / "train", Layout(), test_share=share, seed=0)
    assert torch.bincount(folder.test.labels).tolist() == [in_test, in_test]
    assert torch.bincount(folder.train.labels).tolist() == [20 - in_test, 20 - in_test]
    together = [*folder.train.paths, *folder.test.paths]
    assert sorted(together) == sorted((image_folder / "train").rglob("*.png"))


def test_a_class_of_one_image_is_named_as_its_folder_is(tmp_path: Path) -> None:
    for name in ("rare/0.png", "usual/0.png", "usual/1.png"):
        save(tmp_path / name, COLOURS)
    with pytest.raises(DataError, match=r"has one image of class 'rare': add one \(train and test need one each\)"):
        open_folder(tmp_path, Layout(), 0.5, 0)


def test_the_split_depends_on_its_seed_alone(image_folder: Path) -> None:
    splits = [open_folder(image_folder / "train", Layout(), 0.3, seed).test.paths for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_images_are_found_below_a_class_folder_and_other_files_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("a/one/0.png", "a/two/0.png", "b/0.png", "b/1.png", ".hidden/0.png"):
        save(tmp_path / name, COLOURS)
    for name in ("a/one/.hidden.png", "b/.ipynb_checkpoints/0-checkpoint.png", "b/._0.png"):
        save(tmp_path / name, COLOURS)
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "README").write_text("not a class")
    folder = open_folder(tmp_path, Layout(), 0.5, 0)
    assert folder.classes == ("a", "b")
    assert len(folder.train) + len(folder.test) == 4


def test_no_image_is_passed_over_in_silence_for_its_kind(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.jpg", "b/0.png", "b/1.png"):
        save(tmp_path / name, COLOURS)
    (tmp_path / "a" / "1.jpg").rename(tmp_path / "a" / "1.JFIF")
    assert len(load_source(f"folder:{tmp_path}", DataOptions(validation=0)).train) == 2
    (tmp_path / "a" / "2.HEIC").write_bytes(b"\0\0\0 ftypheic")
    with pytest.raises(DataError, match=r"2\.HEIC' is not a readable image: \.heic files are not read; save it as JPEG or PNG"):
        load_source(f"folder:{tmp_path}")
    # What is called so and is of a kind that is read, is read.
    (tmp_path / "a" / "2.HEIC").write_bytes((tmp_path / "a" / "1.JFIF").read_bytes())
    load_source(f"folder:{tmp_path}")


def test_a_lone_folder_around_the_classes_is_named(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png"):
        save(tmp_path / name, COLOURS)
    with pytest.raises(DataError, match=r"has 1 class folders: .*; name '.*/train' if its folders are the classes"):
        open_folder(tmp_path, Layout(), 0.5, 0)


def test_resizing_makes_all_images_square_and_keeps_flat_ones_flat(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(8, 6), (20, 5), (3, 9), (10, 10)]):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", np.full((height, width, 3), 10 * number, np.uint8))
    folder = open_folder(tmp_path, Layout(10), 0.5, 0)
    assert folder.train.image_shape == (3, 10, 10)
    for split in (folder.train, folder.test):
        for path, image in zip(split.paths, split.decode().pixels, strict=True):
            assert image.unique().tolist() == [10 * int(path.stem)]


def test_images_of_another_size_are_refused_by_name_unless_resized(tmp_path: Path) -> None:
    path = save(tmp_path / "0.png", COLOURS)
    assert decode(path, "0.png", Decoding((3, 8, 6), None)).shape == (3, 8, 6)
    with pytest.raises(DataError, match=r"0\.png' is 6x8 pixels and the first image is 8x6: give --data_options.size"):
        decode(path, "0.png", Decoding((3, 6, 8), None))
    assert decode(path, "0.png", Decoding((3, 6, 8), "stretch")).shape == (3, 6, 8)


def test_a_subset_holds_the_chosen_images_in_the_given_order(image_folder: Path) -> None:
    split = open_folder(image_folder, Layout(), 0.5, 0).train
    chosen = torch.tensor([30, 2, 7])
    subset = split.subset(chosen)
    assert torch.equal(subset.read(torch.arange(3)), split.read(chosen))
    assert torch.equal(subset.read(torch.tensor([2])), split.read(torch.tensor([7])))
    assert subset.labels.tolist() == [1, 0, 0]
    assert len(subset) == 3


def test_images_on_disk_and_in_memory_are_the_same(image_folder: Path) -> None:
    resident = load_source(f"folder:{image_folder}", DataOptions(validation=4))
    on_disk = load_source(f"folder:{image_folder}", DataOptions(validation=4, memory_limit=0))
    for one, other in (
        (resident.train, on_disk.train),
        (resident.validation, on_disk.validation),
        (resident.test, on_disk.test),
    ):
        assert isinstance(one, ResidentSplit)
        assert isinstance(other, FileSplit)
        everything = torch.arange(len(one))
        assert len(one) == len(other)
        assert torch.equal(one.read(everything), other.read(everything))
        assert torch.equal(one.labels, other.labels)
    assert resident.classes == on_disk.classes
    # A run that goes on under another memory_limit is known again by these.
    for one, other in ((resident, on_disk), (on_disk, resident)):
        assert one.digest != other.digest
        assert one.digests_read_otherwise() == {"digest": other.digest, "validation_digest": other.validation_digest}


@pytest.mark.parametrize("limit", [4.0, 0.0])
def test_the_digest_of_a_folder_does_not_depend_on_where_it_lies_and_sees_what_is_in_it(
    limit: float, image_folder: Path, tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    options = DataOptions(memory_limit=limit)
    before = load_source(f"folder:{image_folder}", options).digest
    moved = image_folder.rename(tmp_path / "elsewhere")
    assert load_source(f"folder:{moved}", options).digest == before
    write_images(moved / "test" / "cat", 5, tone=100)
    assert load_source(f"folder:{moved}", options).digest != before


@pytest.mark.parametrize("limit", [4.0, 0.0])
def test_validation_images_have_a_digest_of_their_own(
    limit: float, image_folder: Path, write_images: Callable[..., Path]
) -> None:
    def digests(seed: int = 0) -> tuple[str, str]:
        found = load_source(f"folder:{image_folder}", DataOptions(memory_limit=limit, split_seed=seed))
        return found.digest, found.validation_digest

    held_out = digests()
    assert held_out == digests()
    assert digests(seed=1)[0] == held_out[0]
    assert digests(seed=1)[1] != held_out[1]
    for tone, name in ((0, "cat"), (180, "dog")):
        write_images(image_folder / "val" / name, 3, tone=tone)
    own = digests()
    write_images(image_folder / "val" / "cat", 4, tone=9)
    assert own[0] == digests()[0] == held_out[0]
    assert len({held_out[1], own[1], digests()[1]}) == 3


@pytest.mark.parametrize("limit", [4.0, 0.0])
def test_the_digest_tells_images_that_are_stretched_from_images_that_are_cropped(
    limit: float, tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    for tone, name in ((0, "cat"), (180, "dog")):
        write_images(tmp_path / "wide" / name, 10, size=(16, 8), tone=tone)
    digests = {
        load_source(f"folder:{tmp_path / 'wide'}", DataOptions(size=8, resizing=resizing, memory_limit=limit)).digest
        for resizing in ("stretch", "crop")
    }
    assert len(digests) == 2


def test_cifar10_has_its_own_classes_in_its_own_order(shared_data: Path, tmp_path: Path) -> None:
    wanted = {
        f"cifar10/{split}/{name}/{stem}.jpg" for split in ("train", "test") for name in CIFAR10 for stem in ("0001", "0002")
    }
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz", "r|xz") as archive:
        for member in archive:
            if member.name in wanted:
                target = tmp_path / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())
    source = load_source(f"folder:{tmp_path / 'cifar10'}", DataOptions(validation=0))
    assert source.classes == CIFAR10
    assert source.image_shape == (3, 32, 32)
    assert torch.bincount(source.train.labels).tolist() == torch.bincount(source.test.labels).tolist() == [2] * 10


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_val_is_the_test_split_of_a_folder_without_one_and_the_validation_split_of_one_with(image_folder: Path) -> None:
    (image_folder / "test").rename(image_folder / "val")
    source = load_source(f"folder:{image_folder}", DataOptions(validation=4))
    assert [len(split) for split in (source.train, source.validation, source.test)] == [36, 4, 8]
    shutil.copytree(image_folder / "val", image_folder / "test")
    source = load_source(f"folder:{image_folder}")
    assert [len(split) for split in (source.train, source.validation, source.test)] == [40, 8, 8]
    assert len(load_source(f"folder:{image_folder}", DataOptions(validation=3)).validation) == 3


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "Valid")])
def test_splits_may_be_written_in_upper_case(train: str, test: str, image_folder: Path) -> None:
    (image_folder / "train").rename(image_folder / train)
    (image_folder / "test").rename(image_folder / test)
    source = load_source(f"folder:{image_folder}", DataOptions(validation=0))
    assert source.classes == ("cat", "dog")
    assert (len(source.train), len(source.test)) == (40, 8)


def test_names_of_splits_are_known_in_any_case_and_in_lower_case_first() -> None:
    assert split_names(["Val", "Test", "TRAIN", "extra"]) == {"train": "TRAIN", "test": "Test", "validation": "Val"}
    assert split_names(["train", "Train", "valid"]) == {"train": "train", "test": "valid"}
    assert split_names(["training", "test"]) is None


def test_splits_of_other_names_are_not_taken_for_classes(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "test").rename(image_folder / "dev")
    with pytest.raises(DataError, match=r"/dev' and '.*/train' both have folders cat and dog, .* call them train/, val/"):
        open_folder(image_folder, Layout(), 0.5, 0)
    # One folder of the same name in every class is no class, as in Tiny ImageNet.
    for name in ("a/images/0.png", "a/images/1.png", "b/images/0.png", "b/images/1.png"):
        save(tmp_path / "tiny" / name, COLOURS)
    assert open_folder(tmp_path / "tiny", Layout(), 0.5, 0).classes == ("a", "b")
    # Nor are classes with pictures of the same cameras splits.
    for name in ("oak/north/0.png", "oak/south/1.png", "pine/north/0.png", "pine/south/1.png"):
        save(tmp_path / "forest" / name, COLOURS)
    assert open_folder(tmp_path / "forest", Layout(), 0.5, 0).classes == ("oak", "pine")


def test_links_in_a_circle_are_named(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "round.png").symlink_to("round.png")
    with pytest.raises(DataError, match=r"round\.png' is a link that leads out of '.*', or in a circle"):
        open_folder(image_folder, Layout(), 0.5, 0)


def test_files_may_have_names_that_are_not_utf_8_and_classes_may_not(image_folder: Path) -> None:
    folder = image_folder / "train" / "cat"
    odd = folder / os.fsdecode(b"caf\xe9.png")
    (folder / "000.png").rename(odd)
    source = load_source(f"folder:{image_folder}", DataOptions(memory_limit=0, validation=0))
    assert isinstance(source.train, FileSplit)
    file, name = source.train.encoded(list(source.train.paths).index(odd))
    assert file == odd
    assert name == f"{folder}/caf\\xe9.png"
    odd.write_text("no picture")
    with pytest.raises(DataError, match=r"caf\\xe9\.png' is not a readable image"):
        load_source(f"folder:{image_folder}")
    folder.rename(folder.parent / os.fsdecode(b"\xe9"))
    with pytest.raises(DataError, match=r"train/\\xe9' has a name that is not UTF-8, .*: rename it"):
        open_folder(image_folder, Layout(), 0.5, 0)


def test_channels_and_fewer_images_may_be_asked_for(image_folder: Path) -> None:
    grey = load_source(f"folder:{image_folder}", DataOptions(channels=1, images=10, validation=2))
    assert grey.image_shape == (1, 8, 8)
    assert [len(split) for split in (grey.train, grey.validation, grey.test)] == [8, 2, 8]
    colour = load_source("digits", DataOptions(channels=3)).train.read(torch.arange(5))
    plain = load_source("digits").train.read(torch.arange(5))
    assert torch.equal(colour, plain.expand(-1, 3, -1, -1))
