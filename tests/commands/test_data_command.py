"""`aalp data`: what it prints, writes and exits with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aalp.cli import main
from aalp.commands import data as data_command
from aalp.commands.train import about_classes
from aalp.data.check import look
from aalp.data.sources import DataOptions, load_source
from aalp.errors import RunError
from aalp.store.records import read_record, read_table


@pytest.fixture
def animals(tmp_path: Path, write_images: Callable[..., Path]) -> Path:
    """train/ and test/ with 6 and 4 cats, 20 and 4 dogs, none of them twice."""
    for tone, name, count in ((0, "cat", 6), (180, "dog", 20)):
        write_images(tmp_path / "animals" / "train" / name, count, tone=tone)
        write_images(tmp_path / "animals" / "test" / name, 4, tone=tone + 7)
    return tmp_path / "animals"


def test_data_in_order_get_a_table_a_record_a_sheet_and_exit_code_0(
    animals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check"
    assert main(["data", f"folder:{animals}", "--out", str(out), "--quiet"]) == 0
    text = capfd.readouterr().out
    lines = text.splitlines()
    assert ["cat", "6", "4"] in [line.split() for line in lines]
    assert ["dog", "20", "4"] in [line.split() for line in lines]
    assert "in two splits: none" in lines
    assert (
        "the largest class has 3.3 times the images of the smallest: --training.balance classes draws all equally often"
        in lines
    )
    record = read_record(out / "check.json", "data")
    assert record["splits"]["train"]["per_class"] == [6, 20]
    assert record["splits"]["train"]["width"] == {"least": 8, "median": 8, "most": 8}
    assert record["splits"]["test"]["modes"] == {"RGB": 8}
    assert record["spoiled"] is False
    table = read_table(out / "images.parquet")
    assert table["split"] == ["train"] * 26 + ["test"] * 8
    assert len(set(table["sha256"])) == 34
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_classes_without_training_images_are_named(animals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drawn = ["--data_options.images", "2"]  # two dogs, by the seed of the split
    assert main(["data", f"folder:{animals}", "--out", str(tmp_path / "check"), "--quiet", *drawn]) == 0
    assert "classes without training images: 1: cat" in capfd.readouterr().out.splitlines()
    source = load_source(f"folder:{animals}", DataOptions(images=2))
    for balance in ("none", "classes"):
        assert about_classes(source, balance).startswith("1 of 2 classes have no training images, 'cat' to begin with")


def test_near_duplicates_that_nobody_could_look_for_are_not_said_to_be_none(
    animals: Path, write_images: Callable[..., Path], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["data", f"folder:{animals}", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "small")]) == 0
    assert "nearly the same in two splits: not looked for, the images are smaller than 32 pixels" in capfd.readouterr().out
    for split, tone in (("train", 90), ("test", 110)):
        write_images(animals / split / "fox", 2, size=(40, 40), tone=tone)
    main([*words, str(tmp_path / "some")])
    assert "nearly the same in two splits (34 images are too small to tell): none" in capfd.readouterr().out
    assert read_record(tmp_path / "some" / "check.json", "data")["duplicates"]["too_small_for_near"] == 34


def test_a_folder_that_another_process_made_meanwhile_is_left_as_it_is(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def meanwhile(*words: Any) -> Any:
        for folder in (Path("data-checks/animals-001"), Path("mine")):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "check.json").write_text("another's")
        return look(*words)

    monkeypatch.setattr(data_command, "look", meanwhile)
    assert main(["data", "folder:animals", "--quiet"]) == 0
    assert read_record(Path("data-checks/animals-002/check.json"), "data")["classes"] == ["cat", "dog"]
    shutil.rmtree("mine")
    capfd.readouterr()
    assert main(["data", "folder:animals", "--quiet", "--out", "mine"]) == 2
    assert capfd.readouterr() == ("", "aalp: 'mine' exists by now: choose another --out\n")
    for folder in (Path("data-checks/animals-001"), Path("mine")):
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("check.json", "another's")]


def test_a_check_that_the_disk_refused_stands_not_in_the_way_of_the_same_command(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *_words: Any) -> None:
        raise RunError(f"'{path}' could not be written: No space left on device; free space or choose another folder")

    out = tmp_path / "checks" / "mine"
    with monkeypatch.context() as full:
        full.setattr(data_command, "write_table", refused)
        assert main(["data", f"folder:{animals}", "--out", str(out), "--quiet"]) == 2
    assert "No space left" in capfd.readouterr().err
    assert list(out.parent.iterdir()) == []
    assert main(["data", f"folder:{animals}", "--out", str(out), "--quiet"]) == 0
    assert {path.name for path in out.iterdir()} == {"check.json", "contact-sheet.png", "images.parquet"}


def test_data_that_spoil_figures_are_named_and_exit_with_3(
    animals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (animals / "train" / "cat" / "000.png").read_bytes()
    (animals / "test" / "cat" / "copied.png").write_bytes(content)
    (animals / "train" / "dog" / "003.png").write_text("no picture")
    out = tmp_path / "check"
    assert main(["data", f"folder:{animals}", "--out", str(out), "--quiet"]) == 3
    text = capfd.readouterr().out
    assert "in two splits: 1" in text
    assert f"train {animals}/train/cat/000.png (cat) = test {animals}/test/cat/copied.png (cat)" in text
    assert "unreadable: 1" in text
    assert json.loads((out / "check.json").read_text())["unreadable"][0]["split"] == "train"
    # Nothing is overwritten.
    assert main(["data", f"folder:{animals}", "--out", str(out), "--quiet"]) == 2
    assert "exists already: choose another --out" in capfd.readouterr().err


def test_of_many_classes_the_smallest_and_the_largest_are_listed(
    tmp_path: Path, write_images: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        write_images(tmp_path / "many" / f"class{number:02d}", 2 + number % 12, size=(8, 8 + number % 3), tone=8 * number)
    assert main(["data", "folder:many", "--quiet"]) in (0, 3)
    text = capfd.readouterr().out
    assert "... 4 classes between" in text
    assert "sizes differ: train with --data_options.size" in text
    assert Path("data-checks/many-001/check.json").is_file()
    assert main(["data", "digits", "--quiet", "--data_options.images", "50"]) == 0
    assert Path("data-checks/digits-001/contact-sheet.png").is_file()


def test_black_and_transparent_images_are_pointed_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        for label in ("a", "b"):
            (tmp_path / "faint" / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 2, (8, 8, 4)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faint" / label / f"{number}.png")
    main(["data", f"folder:{tmp_path / 'faint'}", "--out", str(tmp_path / "check"), "--quiet"])
    text = capfd.readouterr().out
    assert "0 or 1 of 255" in text
    assert "transparency is left out" in text


def test_names_that_are_not_utf_8_are_escaped(animals: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, out = animals / "train" / "cat", tmp_path / "check"
    (folder / "000.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / os.fsdecode(b"th\xe9.png")).write_text("no picture")
    assert main(["data", f"folder:{animals}", "--out", str(out), "--quiet"]) == 3
    assert f"'{folder}/th\\xe9.png' is not a readable image" in capfd.readouterr().out
    assert f"{folder}/caf\\xe9.png" in read_table(out / "images.parquet")["name"]


def test_images_in_colour_that_training_refuses_after_a_grey_first_one_are_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for split, name, colour in ((split, name, colour) for split in ("train", "test") for name, colour in COLOURED):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / split / name / "1.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "train" / "blue" / "0.png")
    said = "the first image is grey and 4 are in colour: train with --data_options.channels 3"
    for number, words in enumerate(([], ["--data_options.channels", "3"])):
        main(["data", f"folder:{tmp_path}", "--out", str(tmp_path / f"check{number}"), "--quiet", *words])
        assert (said in capfd.readouterr().out) == (words == [])


COLOURED = (("blue", (0, 0, 200)), ("red", (200, 0, 0)))
