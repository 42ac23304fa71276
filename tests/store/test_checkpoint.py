from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aalp.errors import RunError
from aalp.models.classifier import Classifier
from aalp.store.checkpoint import read_foreign_tensors, read_metadata, read_tensors, state_for, write_tensors
from aalp.training.loop import fit
from aalp.training.plan import Fit

TENSORS = {
    "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "count": torch.tensor(7),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.empty(0),
    "last": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "turned": torch.arange(6.0).view(2, 3).t(),
}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_what_is_written_comes_back_with_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "weights.safetensors"
    metadata = {"classes": ["a", "b"], "eps": 0.1, "nested": {"none": None}}
    write_tensors(path, TENSORS, metadata)
    tensors, read = read_tensors(path)
    assert same(tensors, TENSORS)
    assert {name: read[name] for name in metadata} == metadata
    assert read_metadata(path) == read


def test_tensors_get_the_module_s_versions_back_unless_a_name_is_missing_as_in_old_files() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(2))
    tensors = dict(norm.state_dict())
    assert state_for(norm, tensors)._metadata["0"] == {"version": nn.BatchNorm2d._version}  # type: ignore[attr-defined]
    # Before its version 2, BatchNorm had no count: it still takes such a file, but only as one of no version.
    del tensors["0.num_batches_tracked"]
    norm.load_state_dict(state_for(norm, tensors))


def test_tensors_that_share_memory_or_want_gradients_are_written_as_they_are(tmp_path: Path) -> None:
    shared = torch.randn(4, requires_grad=True)
    write_tensors(tmp_path / "w.safetensors", {"one": shared, "other": shared, "part": shared[:2]}, {})
    tensors = read_tensors(tmp_path / "w.safetensors")[0]
    assert torch.equal(tensors["one"], shared)
    assert torch.equal(tensors["other"], shared)
    assert torch.equal(tensors["part"], shared[:2])


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "1", TENSORS, {"a": 1, "b": 2})
    write_tensors(tmp_path / "2", dict(reversed(TENSORS.items())), {"b": 2, "a": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def cut(keep: float) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        write_tensors(path, TENSORS, {})
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return write


@pytest.mark.parametrize("read", [read_metadata, read_tensors])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no file '{}': name"),
        (lambda path: path.mkdir(), "there is no file '{}': name"),
        (lambda path: path.write_bytes(b""), "'{}' is not a readable safetensors file"),
        (lambda path: path.write_bytes(b"text" * 100), "'{}' is not a readable safetensors file"),
        (cut(0.05), "'{}' is not a readable safetensors file"),
        (cut(0.5), "'{}' is not a readable safetensors file"),
        (cut(0.99), "'{}' is damaged, its checksum does not fit its content: use another checkpoint"),
        (lambda path: save_file({"w": torch.zeros(2)}, path), "'{}' was not written by aalp"),
        (lambda path: save_file({"w": torch.zeros(2)}, path, {"other": "program"}), "'{}' was not written by aalp"),
        (lambda path: save_file({"w": torch.zeros(2)}, path, {"aalp": "not JSON"}), "'{}' was not written by aalp"),
        (lambda path: save_file({"w": torch.zeros(2)}, path, {"aalp": "[1]"}), "'{}' was not written by aalp"),
        (lambda path: save_file({"w": torch.zeros(2)}, path, {"aalp": '{"format": 99}'}), "'{}' has format 99"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_in_one_line_that_names_it(
    read: Callable[[Path], Any], write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    write(path)
    with pytest.raises(RunError) as caught:
        read(path)
    assert str(caught.value).startswith(message.format(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_metadata, read_tensors])
def test_a_changed_byte_is_detected_wherever_it_is(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, TENSORS, {"kind": "weights", "classes": ["a", '"checksum": "' + "0" * 64]})
    whole = path.read_bytes()
    read(path)
    dice = random.Random(0)
    # Every byte of the header, where a change can make the file lie, and 1,000 random ones anywhere.
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [*range(header), *(dice.randrange(len(whole)) for _ in range(1000))]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= dice.randrange(1, 256)
        path.write_bytes(changed)
        with pytest.raises(RunError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    read(path)


def test_1000_changed_bytes_of_a_real_training_state_are_detected(fit_plan: Callable[..., Fit]) -> None:
    # Small, as each time the whole of it is written and read.
    plan = fit_plan(classifier=Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))).train())
    fit(plan)
    path = sorted((plan.run.path / "states").iterdir())[-1]
    whole = path.read_bytes()
    dice = random.Random(1)
    for _ in range(1000):
        place = dice.randrange(len(whole))
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(RunError, match=r"damaged|not a readable|not written by aalp|has format"):
            read_metadata(path)


def write_raw(path: Path, header: object, data: bytes = b"") -> None:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


LIES = {
    "a shape larger than its bytes": {"w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 8]}},
    "a shape that overflows": {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
    "offsets past the end": {"w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}},
    "offsets that overlap": {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("w", "v")},
    "offsets that run backwards": {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    "an unknown type": {"w": {"dtype": "PICKLE", "shape": [2], "data_offsets": [0, 8]}},
    "a header without tensors' form": {"w": "tensor"},
    "a header that is a list": [1],
    "metadata that is no mapping": {"__metadata__": [1]},
    "a header of 100,000 brackets": b"[" * 100_000,
}


@pytest.mark.parametrize("header", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("read", [read_tensors, read_foreign_tensors])
def test_a_header_that_lies_is_refused_in_one_line(read: Callable[[Path], Any], header: object, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    about = {"__metadata__": {"aalp": '{"format": 1}'}}
    # Format 1 has no checksum, so that it is the lie that gets refused.
    write_raw(path, {**about, **header} if isinstance(header, dict) else header, bytes(8))
    with pytest.raises(RunError, match=r"is not a readable safetensors file|was not written by aalp") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_size_that_lies_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}" * 10)
    with pytest.raises(RunError, match="is not a readable safetensors file"):
        read_foreign_tensors(path)


def test_files_from_before_there_were_checksums_are_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", {"aalp": '{"format": 1, "kind": "weights"}'})
    tensors, about = read_tensors(tmp_path / "w.safetensors")
    assert same(tensors, {"w": torch.ones(2)})
    assert about["kind"] == "weights"


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.safetensors", lambda path: save_file({"w": torch.ones(2)}, path)),
        ("w.safetensors", lambda path: write_tensors(path, {"w": torch.ones(2)}, {})),
        ("w.pt", lambda path: torch.save({"w": torch.ones(2)}, path)),
        ("w.pth", lambda path: torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)),
        ("w.pt", lambda path: torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, path)),
        # As torch's own tutorial and the CIFAR-10 code that many papers start from save them.
        ("w.pt", lambda path: torch.save({"model_state_dict": {"w": torch.ones(2)}, "optimizer_state_dict": {}}, path)),
        ("w.pt", lambda path: torch.save({"net": {"w": torch.ones(2)}, "acc": 1.0}, path)),
        ("w.tar", lambda path: torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, path)),
    ],
)
def test_state_dicts_of_other_programs_are_read(name: str, write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path / name)
    assert same(read_foreign_tensors(tmp_path / name), {"w": torch.ones(2)})


@pytest.mark.parametrize(("own", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_of_weights_and_their_average_in_one_file_neither_is_taken_unasked(own: str, average: str, tmp_path: Path) -> None:
    torch.save({own: {"w": torch.ones(2)}, average: {"w": torch.zeros(2)}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(RunError, match=f"holds two sets of weights, '{own}' and '{average}': save the one"):
        read_foreign_tensors(tmp_path / "w.pth")


class Creates:
    """Unpickled, this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, evil: path.write_bytes(pickle.dumps({"w": evil})),
        lambda path, evil: torch.save({"w": evil}, path),
        lambda path, evil: torch.save({"w": evil}, path, _use_new_zipfile_serialization=False),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_code_in_a_pickle_is_not_executed(write: Callable[[Path, Creates], object], name: str, tmp_path: Path) -> None:
    write(tmp_path / name, Creates(tmp_path / "executed"))
    with pytest.raises(RunError) as caught:
        read_foreign_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": torch.ones(1), "epoch": 3}, "holds other things than tensors"),
        ([torch.ones(1)], "holds other things than tensors"),
        (torch.ones(1), "holds other things than tensors"),
    ],
)
def test_a_torch_file_of_other_things_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(RunError, match=message):
        read_foreign_tensors(tmp_path / "w.pt")


def test_a_missing_state_dict_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"there is no file '{tmp_path / 'w.pt'}'"):
        read_foreign_tensors(tmp_path / "w.pt")
