"""The data check: what it counts, what it finds twice, what it cannot read, and its contact sheet."""

from __future__ import annotations

import io
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from aalp.data import check
from aalp.data.check import Found, Seen, duplicates, imbalance, look
from aalp.data.contact_sheet import THUMBNAIL, contact_sheet
from aalp.data.sources import DataOptions, open_source
from aalp.data.split import Loaded, ResidentSplit


def photograph(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """A smooth random picture: large blobs of colour, as photographs have them."""
    blobs = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/ and test/ with cat and dog: 6 and 3 pictures each, all different, of two sizes."""
    for split, count, first in (("train", 6, 0), ("test", 3, 100)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                photograph(first + 10 * label + number, (48, 40 if number else 64)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def checked(root: Path) -> tuple[dict[str, Seen], Found]:
    seen = look(open_source(f"folder:{root}", DataOptions()), 2, lambda name, done, total: None)
    return seen, duplicates(seen)


def test_a_folder_in_order_is_counted_and_measured(root: Path) -> None:
    seen, found = checked(root)
    assert {name: len(images.labels) for name, images in seen.items()} == {"train": 12, "test": 6}
    assert sorted(set(seen["train"].sizes)) == [(48, 40), (48, 64)]
    assert set(seen["train"].modes) == {"RGB"}
    assert (found.across, found.contradictions, found.near, found.near_skipped) == ([], [], [], False)
    assert found.within == {"train": 0, "test": 0}
    assert all(len(images) == 2 for images in seen["train"].small.values())


def test_values_by_hand(tmp_path: Path) -> None:
    # Half the pixels 0, half 255: least 0, most 1, mean 1/2, mean square 1/2.
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    pixels[:, :, :2] = 255
    split = ResidentSplit(pixels, torch.tensor([0, 1]))
    train = look(Loaded(split, split, ("a", "b")), 1, lambda name, done, total: None)["train"]
    assert (train.low, train.high, train.total / train.pixels, train.squares / train.pixels) == (0, 1, 0.5, 0.5)
    assert train.flat == []
    flat = ResidentSplit(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8), torch.tensor([0, 1]))
    assert look(Loaded(flat, split, ("a", "b")), 1, lambda name, done, total: None)["train"].flat == [0, 1]


def test_the_same_pixels_are_found_whatever_the_file(root: Path) -> None:
    original = root / "train" / "cat" / "1.png"
    with Image.open(original) as image:
        image.save(root / "test" / "cat" / "copy.bmp")
        image.save(root / "train" / "cat" / "again.png", compress_level=0)
        image.save(root / "test" / "dog" / "wrong.png")
    seen, found = checked(root)
    names = {name: [Path(path).name for path in images.names] for name, images in seen.items()}
    assert [(one, names[one][at], other, names[other][place]) for one, at, other, place in found.across] == [
        ("train", "1.png", "test", "copy.bmp")
    ]
    assert [names[other][place] for _, _, other, place in found.contradictions] == ["wrong.png"]
    assert found.within == {"train": 1, "test": 1}


def test_a_photograph_that_its_file_says_to_turn_is_the_one_that_lies_upright_already(root: Path) -> None:
    with Image.open(root / "train" / "cat" / "1.png") as image:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # to be turned to the right
        image.transpose(Image.Transpose.ROTATE_90).save(root / "test" / "cat" / "lying.png", exif=exif)
    seen, found = checked(root)
    names = {name: [Path(path).name for path in images.names] for name, images in seen.items()}
    assert [names[other][place] for _, _, other, place in found.across] == ["lying.png"]
    assert sorted(set(seen["test"].sizes)) == [(48, 40), (48, 64)]


def test_a_copy_saved_anew_or_resized_is_nearly_the_same_and_a_tiny_image_is_not_judged(root: Path) -> None:
    with Image.open(root / "train" / "dog" / "2.png") as image:
        image.convert("RGB").save(root / "test" / "dog" / "copy.jpg", quality=70)
        image.resize((36, 32)).save(root / "test" / "dog" / "smaller.png")
        image.resize((8, 8)).save(root / "test" / "dog" / "tiny.png")
    seen, found = checked(root)
    assert found.across == []
    assert sorted(Path(seen[other].names[place]).name for _, _, other, place in found.near) == ["copy.jpg", "smaller.png"]
    assert {Path(seen[one].names[at]).name for one, at, _, _ in found.near} == {"2.png"}
    assert found.too_small == 1


def test_arrays_with_more_channels_are_compared_by_all_of_them() -> None:
    pixels = torch.zeros(2, 5, 8, 8, dtype=torch.uint8)
    pixels[1, 4] = 200  # the first channels are equal
    train, test = (ResidentSplit(pixels[at : at + 1], torch.tensor([0])) for at in (0, 1))
    seen = look(Loaded(train, test, ("a", "b")), 0, lambda name, done, total: None)
    assert duplicates(seen).across == []
    assert seen["test"].high == 200 / 255
    assert seen["test"].flat == []
    same = look(Loaded(test, test, ("a", "b")), 0, lambda name, done, total: None)
    assert len(duplicates(same).across) == 1


def test_what_cannot_be_read_is_noted_and_the_rest_is_seen(root: Path) -> None:
    (root / "train" / "cat" / "0.png").write_text("no picture")
    content = (root / "test" / "dog" / "2.png").read_bytes()
    (root / "test" / "dog" / "2.png").write_bytes(content[: len(content) // 2])
    seen, _ = checked(root)
    assert [Path(seen["train"].names[at]).name for at in seen["train"].errors] in (["0.png"], ["train image 0"])
    assert "is not a readable image" in seen["train"].errors[0]
    assert list(seen["test"].errors) == [5]
    assert seen["test"].hashes[5] == ""
    assert seen["test"].sizes[5] == (0, 0)


def test_imbalance_is_the_largest_class_by_the_smallest() -> None:
    assert imbalance([0, 0, 0, 0, 0, 0, 1, 1], 3) == 3


def test_the_contact_sheet_shows_each_class_in_its_row() -> None:
    colours = {0: (200, 0, 0), 1: (0, 0, 200)}
    images = {label: [Image.new("RGB", (8, 8), colour)] * 3 for label, colour in colours.items()}
    sheet = Image.open(io.BytesIO(contact_sheet("pictures", ("red", "blue"), images, (5, 7))))
    pixels = np.asarray(sheet.convert("RGB"))
    for colour in colours.values():
        # Enlarged to the full height of a row: 8x8 becomes 64x64.
        assert (pixels == np.array(colour)).all(2).sum() == 3 * THUMBNAIL * THUMBNAIL
    red, blue = (np.nonzero((pixels == np.array(colour)).all(2))[0] for colour in colours.values())
    assert red.max() < blue.min()


def test_of_many_classes_an_even_choice_is_shown() -> None:
    sheet = Image.open(io.BytesIO(contact_sheet("many", [f"class {at}" for at in range(1000)], {}, [1] * 1000)))
    assert sheet.height < 60 * (THUMBNAIL + 8) + 100


def test_photographs_wait_a_few_at_a_time_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    looked = threading.Event()
    decoded: list[int] = []

    class Slow(ResidentSplit):
        def read(self, rows: torch.Tensor) -> torch.Tensor:
            decoded.append(int(rows[0]))
            return super().read(rows)

    def note(*_: object) -> None:
        if not looked.is_set():
            looked.wait(0.2)  # long enough for all the others to be decoded, if nothing held them back
            looked.set()
            assert len(decoded) <= 3

    monkeypatch.setattr(check, "_note", note)
    split = Slow(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.zeros(40, dtype=torch.long))
    look(Loaded(split, split, ("a",)), 0, lambda name, done, total: None)
    assert sorted(decoded[:40]) == list(range(40))


def test_an_image_is_measured_without_a_copy_of_it_in_float64() -> None:
    split = ResidentSplit(torch.full((1, 1, 1000, 1000), 200, dtype=torch.uint8), torch.tensor([0]))
    tracemalloc.start()
    try:
        train = look(Loaded(split, split, ("a",)), 0, lambda name, done, total: None)["train"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert train.squares / train.pixels == pytest.approx((200 / 255) ** 2)
    assert peak < 16e6  # of a million pixels, each looked at in three colours as well


def test_tiny_images_keep_no_thumbnail_and_are_compared_with_none() -> None:
    split = ResidentSplit(torch.arange(64, dtype=torch.uint8).reshape(4, 1, 4, 4), torch.zeros(4, dtype=torch.long))
    seen = look(Loaded(split, split, ("a",)), 0, lambda name, done, total: None)
    assert seen["train"].thumbnails.dtype == torch.uint8
    assert not seen["train"].thumbnails.any()
    assert duplicates(seen).near == []
