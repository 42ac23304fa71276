"""CSVs of image paths and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aalp.data.sources import DataOptions, load_source
from aalp.errors import DataError


@pytest.fixture
def pictures(tmp_path: Path, write_images: Callable[..., Path]) -> Path:
    """A folder with 12 dark images a/000.png ... and 12 bright ones b/000.png ..., of 8x8."""
    for tone, name in ((0, "a"), (180, "b")):
        write_images(tmp_path / "pictures" / name, 12, tone=tone)
    return tmp_path / "pictures"


def write(folder: Path, rows: list[str], name: str = "list.csv", header: str = "path,label") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder / name


def listed(labels: tuple[str, str] = ("night", "day")) -> list[str]:
    return [f"{name}/{number:03d}.png,{label}" for name, label in zip("ab", labels, strict=True) for number in range(12)]


def test_rows_become_images_with_classes_in_alphabetical_order_split_by_class(pictures: Path) -> None:
    source = load_source(f"csv:{write(pictures, listed())}", DataOptions(test_share=0.25, validation=2))
    assert source.classes == ("day", "night")
    assert torch.bincount(source.test.labels).tolist() == [3, 3]
    assert len(source.train) + len(source.validation) == 18
    images, labels = source.test.read(torch.arange(6)).float().flatten(1).mean(1), source.test.labels
    # The bright images are the days.
    assert ((images > 128) == (labels == 0)).all()


@pytest.mark.parametrize("limit", [4.0, 0.0])
def test_absolute_and_relative_paths_may_stand_together(limit: float, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    mixed = [row if at % 2 else f"{pictures}/{row}" for at, row in enumerate(listed())]
    one, other = (
        load_source(f"csv:{write(Path(), rows, name)}", DataOptions(memory_limit=limit, validation=0))
        for name, rows in (("mixed.csv", mixed), ("relative.csv", listed()))
    )
    assert one.digest == other.digest
    assert torch.equal(one.train.read(torch.arange(len(one.train))), other.train.read(torch.arange(len(other.train))))


def test_whole_numbers_are_classes_in_their_order(pictures: Path) -> None:
    source = load_source(f"csv:{write(pictures, listed(('10', '9')))}", DataOptions(validation=0))
    assert source.classes == ("9", "10")


def test_a_column_split_is_followed(pictures: Path) -> None:
    rows = [f"{row},{('train', 'val', 'test')[at % 3]}" for at, row in enumerate(listed())]
    source = load_source(f"csv:{write(pictures, rows, header='file_name,label,split')}")
    assert [len(split) for split in (source.train, source.validation, source.test)] == [8, 8, 8]
    # Without a test split the validation images are the ones to test on, and others are held out.
    rows = [f"{row},{('train', 'val')[at % 2]}" for at, row in enumerate(listed())]
    source = load_source(f"csv:{write(pictures, rows, header='path,label,split')}", DataOptions(validation=3))
    assert [len(split) for split in (source.train, source.validation, source.test)] == [9, 3, 12]


def test_blanks_around_a_label_make_no_other_class(pictures: Path) -> None:
    rows = [f"{row}{('', ' ')[at % 2]}" for at, row in enumerate(listed())]
    assert load_source(f"csv:{write(pictures, rows)}").classes == ("day", "night")
    assert load_source(f"csv:{write(pictures, [row.replace(',', ', ') for row in listed(('10', '9'))])}").classes == ("9", "10")


def test_columns_may_be_written_in_upper_case(pictures: Path) -> None:
    rows = [f"{row},{('Train', 'TEST')[at % 2]}" for at, row in enumerate(listed())]
    file = write(pictures, rows, header="Path,Kind, Split ")
    source = load_source(f"csv:{file}", DataOptions(label_column="kind", validation=0))
    assert source.classes == ("day", "night")
    assert (len(source.train), len(source.test)) == (12, 12)
    # A column of just the name that was asked for comes first.
    file = write(pictures, [f"{row},x" for row in listed()], header="path,label,LABEL")
    assert load_source(f"csv:{file}").classes == ("day", "night")


def test_another_root_and_another_label_column_may_be_named(pictures: Path, tmp_path: Path) -> None:
    file = write(tmp_path, listed(), header="path,kind")
    options = DataOptions(root=pictures, label_column="kind", validation=0)
    assert load_source(f"csv:{file}", options).classes == ("day", "night")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["../outside.png,x"], "path,label", r"line 2 names '\.\./outside\.png', which leads out of .*--data_options\.root"),
        (["/etc/hostname,x"], "path,label", r"line 2 names '/etc/hostname', which leads out of"),
        (["a/link.png,x"], "path,label", r"line 2 names 'a/link\.png', which leads out of"),
        (["a/round.png,x"], "path,label", r"line 2 names 'a/round\.png', and there is no such file"),
        ([f"{'a' * 300}.png,x"], "path,label", r"line 2 names 'a+\.png', which is no path"),
        (["a/999.png,x"], "path,label", r"line 2 names 'a/999\.png', and there is no such file"),
        (["a/000.png,"], "path,label", r"line 2 has no label"),
        (["a/000.png,x", "a/001.png, "], "path,label", r"line 3 has no label"),
        ([",x"], "path,label", r"line 2 has no path"),
        ([], "path,label", r"has 0 classes"),
        (["a/000.png,x"], "path,kind", r"has the columns path, kind: a column label is needed"),
        (["a/000.png,x"], "url,label", r"a column path is needed"),
        (["a/000.png,x,dev"], "path,label,split", r"line 2 has 'dev' as split"),
        (["a/000.png,x,train"], "path,label,split", r"has no test images"),
        (["a/000.png,x,test", "a/001.png,y,train"], "path,label,split", r"no training images of class 'x': give it some"),
        (["", "a/000.png,x", "", '"a/\n1.png",x', "a/001.png, "], "path,label", r"line 7 has no label"),
        (["", "a/999.png,x"], "path,label", r"line 3 names 'a/999\.png'"),
        (["a/000.png,x,train", "", "a/000.png,x,dev"], "path,label,split", r"line 4 has 'dev' as split"),
        (["a/\0.png,x"], "path,label", r"is no path|not a readable CSV|no such file"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(rows: list[str], header: str, message: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes((pictures / "a" / "000.png").read_bytes())
    (pictures / "a" / "link.png").symlink_to(tmp_path / "outside.png")
    (pictures / "a" / "round.png").symlink_to("round.png")
    filled = [*rows, "b/000.png,z" + ",train" * (header.count(",") - 1)] if rows else rows
    with pytest.raises(DataError, match=message):
        load_source(f"csv:{write(pictures, filled, header=header)}")


def test_a_file_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match="is not a readable CSV"):
        load_source(f"csv:{tmp_path / 'list.csv'}")
    with pytest.raises(DataError, match="there is no file"):
        load_source(f"csv:{tmp_path / 'other.csv'}")
