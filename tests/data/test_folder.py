from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from aalp.data.folder import open_folder, split_names
from aalp.data.images import Decoding, Layout, decode, decoding_like
from aalp.data.sources import DataOptions, load_source
from aalp.data.split import ResidentSplit
from aalp.data.stored import FileSplit
from aalp.errors import DataError

COLOURS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)  # height 8, width 6


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


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


def test_the_split_depends_on_its_seed_alone(image_folder: Path) -> None:
    splits = [open_folder(image_folder / "train", Layout(), 0.3, seed).test.paths for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


@pytest.mark.parametrize(
    ("suffix", "kind", "tolerance"),
    [
        (".png", "RGB", 0),
        (".PNG", "RGB", 0),
        (".bmp", "RGB", 0),
        (".ppm", "RGB", 0),
        (".tif", "RGB", 0),
        (".tiff", "RGB", 0),
        (".jpg", "RGB", 40),
        (".jpeg", "L", 10),
        (".webp", "RGB", 40),
        (".png", "L", 0),
        (".pgm", "L", 0),
        (".gif", "L", 0),
        (".png", "1", 0),
        (".png", "I;16", 1),
        (".png", "RGBA", 0),
    ],
)
def test_every_kind_of_image_comes_out_as_bytes_with_channels_first(
    suffix: str, kind: str, tolerance: int, tmp_path: Path
) -> None:
    grey = COLOURS[:, :, 0]
    stored, wanted = {
        "RGB": (COLOURS, COLOURS.transpose(2, 0, 1)),
        "RGBA": (np.concatenate([COLOURS, COLOURS[:, :, :1]], 2), COLOURS.transpose(2, 0, 1)),
        "L": (grey, grey[None]),
        "1": (grey > 70, 255 * (grey > 70)[None]),
        "I;16": (grey.astype(np.uint16) * 257, grey[None]),
    }[kind]
    for label in ("a", "b"):
        for number in (0, 1):
            save(tmp_path / label / f"{number}{suffix}", stored)
    folder = open_folder(tmp_path, Layout(), 0.5, 0)
    pixels = folder.train.decode().pixels.numpy()
    if suffix == ".gif":  # stored with a palette, so it comes as colours that happen to be grey
        wanted = np.repeat(wanted, 3, 0)
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == folder.train.image_shape == wanted.shape
    assert np.abs(pixels[0].astype(int) - wanted.astype(int)).max() <= tolerance


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


def test_cropping_keeps_proportions_where_stretching_does_not(tmp_path: Path) -> None:
    # 12 wide, 6 high; the middle 6 columns are white.
    pixels = np.zeros((6, 12, 3), np.uint8)
    pixels[:, 3:9] = 255
    path = save(tmp_path / "0.png", pixels)
    cropped = decode(path, "0.png", Decoding((3, 6, 6), "crop"))
    stretched = decode(path, "0.png", Decoding((3, 6, 6), "stretch"))
    assert (cropped == 255).all()
    assert (stretched[0, 0, [0, 5]] == 0).all()
    assert abs(float(stretched.mean()) - 127.5) < 2


def test_a_large_jpeg_that_is_made_small_looks_the_same_as_its_png(tmp_path: Path) -> None:
    blobs = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize((640, 480))
    blobs.save(tmp_path / "0.jpg", quality=95)
    blobs.save(tmp_path / "0.png")
    jpeg, png = (decode(tmp_path / name, name, Decoding((3, 32, 32), "stretch")).astype(int) for name in ("0.jpg", "0.png"))
    assert abs(jpeg - png).max() <= 6


def test_channels_and_fewer_images_may_be_asked_for(image_folder: Path) -> None:
    grey = load_source(f"folder:{image_folder}", DataOptions(channels=1, images=10, validation=2))
    assert grey.image_shape == (1, 8, 8)
    assert [len(split) for split in (grey.train, grey.validation, grey.test)] == [8, 2, 8]
    colour = load_source("digits", DataOptions(channels=3)).train.read(torch.arange(5))
    plain = load_source("digits").train.read(torch.arange(5))
    assert torch.equal(colour, plain.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("white", [65535, 4095, 1000])
def test_a_pgm_of_more_than_8_bits_is_scaled_by_what_it_calls_white(white: int, tmp_path: Path) -> None:
    pixels = np.linspace(0, white, 48).round().reshape(8, 6)
    path = tmp_path / "0.pgm"
    path.write_bytes(f"P5\n6 8\n{white}\n".encode() + pixels.astype(">u2").tobytes())
    decoding = decoding_like(path, "0", Layout())
    assert decoding.image_shape == (1, 8, 6)
    assert abs(decode(path, "0", decoding)[0] - pixels / white * 255).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused_as_nobody_says_where_white_is(kind: type, tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in (0, 1):
            save(tmp_path / label / f"{number}.tif", COLOURS[:, :, 0].astype(kind))
    with pytest.raises(DataError, match="32-bit pixels"):
        open_folder(tmp_path, Layout(), 0.5, 0).train.decode()


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_viewers_turn_them(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    blobs = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)).resize((320, 240))
    path = tmp_path / f"0.{kind}"
    blobs.save(path, exif=exif, quality=100)
    wanted = ImageOps.exif_transpose(blobs_with(blobs, exif))
    first = decoding_like(path, "0", Layout())
    assert first.image_shape == (3, wanted.height, wanted.width) == (3, *((320, 240) if orientation > 4 else (240, 320)))
    assert abs(decode(path, "0", first).astype(int) - np.asarray(wanted).transpose(2, 0, 1)).max() <= 12
    # A JPEG is decoded at an eighth here, for a box that lies as the stored pixels do.
    small = decode(path, "0", Decoding((3, 8, 16), "crop")).astype(int)
    save(tmp_path / "wanted.png", np.asarray(wanted))
    assert abs(small - decode(tmp_path / "wanted.png", "wanted", Decoding((3, 8, 16), "crop"))).max() <= 12


def blobs_with(image: Image.Image, exif: Image.Exif) -> Image.Image:
    turned = image.copy()
    turned.getexif().update(exif)
    return turned


def test_a_photograph_with_broken_exif_is_read_as_it_lies(tmp_path: Path) -> None:
    path = save(tmp_path / "0.png", COLOURS)
    for tags in (b"Exif\0\0no tags", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        Image.fromarray(COLOURS).save(path, exif=tags)
        assert np.array_equal(decode(path, "0", decoding_like(path, "0", Layout())), COLOURS.transpose(2, 0, 1))
