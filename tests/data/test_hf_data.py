"""Hugging Face data sets from a folder: saved to disk, as Parquet, streamed; columns, splits, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from aalp.data.loaders import Loader
from aalp.data.sources import DataOptions, load_source
from aalp.data.split import ResidentSplit
from aalp.data.stored import RowSplit, stored_image
from aalp.errors import DataError, OptionError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def rows(count: int, sizes: tuple[int, ...] = (8,)) -> dict[str, list[Any]]:
    """Flat images whose tone is ten times their number, of three classes in turn."""
    images = [Image.new("RGB", (sizes[at % len(sizes)], 8), (10 * at,) * 3) for at in range(count)]
    return {"id": list(range(count)), "picture": images, "label": [at % 3 for at in range(count)]}


def table(count: int, names: tuple[str, ...] | None = ("red", "green", "blue"), **kinds: Any) -> Any:
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = {"id": datasets.Value("int64"), "picture": datasets.Image(), "label": label}
    return datasets.Dataset.from_dict(rows(count, **kinds), features=datasets.Features(features))


def saved(folder: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return f"hf:{folder}"


def tones(split: Any) -> list[int]:
    return split.read(torch.arange(len(split))).float().mean((1, 2, 3)).round().int().tolist()


def test_a_set_saved_to_disk_is_read_from_its_memory_map(tmp_path: Path) -> None:
    name = saved(tmp_path / "set", train=table(12), test=table(6))
    on_disk = load_source(name, DataOptions(validation=3, memory_limit=0))
    assert on_disk.classes == ("red", "green", "blue")
    assert on_disk.image_shape == (3, 8, 8)
    assert isinstance(on_disk.train, RowSplit)
    for split in (on_disk.train, on_disk.validation, on_disk.test):
        # Each tone is ten times the row's number, and its class the number's rest by 3.
        assert [tone // 10 % 3 for tone in tones(split)] == split.labels.tolist()
    assert tones(on_disk.test) == [0, 10, 20, 30, 40, 50]
    assert sorted(tones(on_disk.train) + tones(on_disk.validation)) == [10 * at for at in range(12)]
    resident = load_source(name, DataOptions(validation=3))
    assert isinstance(resident.train, ResidentSplit)
    assert tones(resident.train) == tones(on_disk.train)


@pytest.mark.parametrize("workers", [0, 1])
def test_its_rows_come_through_the_loader_in_any_order(workers: int, tmp_path: Path) -> None:
    source = load_source(saved(tmp_path / "set", train=table(12), test=table(6)), DataOptions(memory_limit=0, validation=0))
    order = torch.tensor([7, 0, 3, 11, 5])
    batches = list(Loader(source.train, 2, torch.device("cpu"), workers).batches(order))
    assert torch.cat([labels for _, labels in batches]).tolist() == (order % 3).tolist()
    assert (torch.cat([images for images, _ in batches]).mean((1, 2, 3)) * 25.5).round().tolist() == order.tolist()


def test_parquet_files_are_a_set_and_val_is_the_validation_split(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 12), ("validation", 3), ("test", 6)):
        table(count).to_parquet(folder / f"{split}-0.parquet")
    source = load_source(f"hf:{folder}")
    assert [len(split) for split in (source.train, source.validation, source.test)] == [12, 3, 6]
    assert tones(source.validation) == [0, 10, 20]


def test_splits_may_be_written_in_upper_case(tmp_path: Path) -> None:
    source = load_source(saved(tmp_path / "set", Train=table(12), Test=table(6)), DataOptions(validation=0))
    assert (len(source.train), len(source.test)) == (12, 6)


def test_one_split_alone_is_split_by_class(tmp_path: Path) -> None:
    table(12, names=None).save_to_disk(tmp_path / "set")
    source = load_source(f"hf:{tmp_path / 'set'}", DataOptions(validation=0, test_share=0.25))
    assert source.classes == ("0", "1", "2")
    assert torch.bincount(source.test.labels).tolist() == [1, 1, 1]
    assert sorted(tones(source.train) + tones(source.test)) == [10 * at for at in range(12)]


def test_a_stream_is_decoded_into_memory_and_no_more_of_it_than_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 12), ("test", 6)):
        table(count, sizes=(8, 9)).to_parquet(folder / f"{split}-0.parquet")
    options = {"streaming": True, "size": 8, "validation": 0}
    whole = load_source(f"hf:{folder}", DataOptions(**options))
    assert isinstance(whole.train, ResidentSplit)
    assert tones(whole.train) == [10 * at for at in range(12)]
    some = load_source(f"hf:{folder}", DataOptions(images=5, **options))
    assert (len(some.train), len(some.test)) == (5, 5)
    assert [tone // 10 % 3 for tone in tones(some.train)] == some.train.labels.tolist()
    with pytest.raises(DataError, match=r"more than 1e-06 GB as it streams in: give --data_options\.images"):
        load_source(f"hf:{folder}", DataOptions(memory_limit=1e-6, **options))
    with pytest.raises(OptionError, match="'digits' is no Hugging Face data set"):
        load_source("digits", DataOptions(streaming=True))


def test_another_label_column_may_be_named_and_has_to_be_where_there_are_two(tmp_path: Path) -> None:
    two = table(12).rename_column("label", "fine").add_column("coarse", [str(at % 2) for at in range(12)])
    two = two.cast_column("coarse", datasets.ClassLabel(names=["even", "odd"]))
    name = saved(tmp_path / "set", train=two, test=two)
    with pytest.raises(DataError, match=r"has the columns id, picture, fine, coarse: say which .*--data_options\.label_column"):
        load_source(name)
    assert load_source(name, DataOptions(label_column="coarse")).classes == ("even", "odd")


def test_the_digest_sees_what_is_in_a_set_and_not_where_it_lies(tmp_path: Path) -> None:
    options = DataOptions(memory_limit=0)
    name = saved(tmp_path / "one", train=table(12), test=table(6))
    before = load_source(name, options).digest
    moved = (tmp_path / "one").rename(tmp_path / "two")
    assert load_source(f"hf:{moved}", options).digest == before
    assert load_source(saved(tmp_path / "three", train=table(12), test=table(5)), options).digest != before


def outside(folder: Path, path: Path) -> Any:
    """A set whose first image is a file that lies elsewhere."""
    images = [{"bytes": None, "path": str(path)}, *({"bytes": (folder / "own.png").read_bytes(), "path": None},) * 5]
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    plain = datasets.Features({"picture": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    made = datasets.Dataset.from_dict({"picture": images}, features=plain)
    return made.add_column("label", [at % 2 for at in range(6)]).cast(features)


def test_an_image_that_lies_elsewhere_is_neither_read_nor_fetched(tmp_path: Path) -> None:
    for name in ("secret.png", "own.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    made = outside(tmp_path, tmp_path / "secret.png")
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):  # not by the library, which would put the file's content in
        parquet.write_table(made.data.table, tmp_path / "set" / f"{split}-0.parquet")
    with pytest.raises(DataError, match=r"is the file '.*secret\.png', which does not lie in the data set"):
        load_source(f"hf:{tmp_path / 'set'}")
    for path in ("https://example.org/secret.png", str(tmp_path / "set/../secret.png")):
        for root in (None, tmp_path / "set"):
            with pytest.raises(DataError, match="which does not lie in the data set"):
                stored_image({"bytes": None, "path": path}, "row 0", root)


def labelled(values: list[Any], kind: str) -> Any:
    made = table(len(values)).remove_columns("label").add_column("label", values)
    return made.cast_column("label", datasets.Value(kind))


def test_labels_of_truth_values_are_the_classes_0_and_1(tmp_path: Path) -> None:
    name = saved(tmp_path / "set", train=labelled([True, False] * 4, "bool"), test=labelled([False, True], "bool"))
    source = load_source(name, DataOptions(validation=0))
    assert source.classes == ("0", "1")
    assert source.train.labels.dtype == torch.int64
    assert source.train.labels.tolist() == [1, 0] * 4
    assert source.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (["a", None, "b"], "string", r"row 1 has the label None: remove the row"),
        ([0.0, 1.0, 0.5], "float64", r"row 0 has the label 0\.0: make the labels whole numbers or text"),
        ([1, 2, 1], "int64", r"no training image with the label 0 of 0\.\.2: subtract the lowest label"),
        ([0, 5, 0], "int64", r"no training image with the label 1 of 0\.\.5: number the classes anew"),
    ],
)
def test_labels_that_name_no_class_or_leave_one_out_are_refused(
    values: list[Any], kind: str, message: str, streaming: bool, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        labelled(values * 2, kind).to_parquet(tmp_path / "set" / f"{split}-0.parquet")
    with pytest.raises(DataError, match=message):
        load_source(f"hf:{tmp_path / 'set'}", DataOptions(streaming=streaming))


def test_a_sample_of_a_stream_may_miss_a_label_by_chance(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        labelled([0, 3, 3, 3], "int64").to_parquet(tmp_path / "set" / f"{split}-0.parquet")
    source = load_source(f"hf:{tmp_path / 'set'}", DataOptions(streaming=True, images=2, validation=0))
    assert source.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table(6).remove_columns("picture"), r"has the columns id, label, none of them of images"),
        (lambda: table(6, names=None).map(lambda row: {"label": -1}), r"row 0 has the label -1: one of"),
        (lambda: table(6).remove_columns("label"), r"say which one has the labels"),
    ],
)
def test_a_set_that_cannot_be_trained_on_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_source(saved(tmp_path / "set", train=make(), test=make()))


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_source(f"hf:{tmp_path / 'missing'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded: "):
        load_source(f"hf:{tmp_path / 'empty'}")


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'datasets is not installed: pip install "aalp\[hf\]"'):
        load_source(f"hf:{tmp_path}")
