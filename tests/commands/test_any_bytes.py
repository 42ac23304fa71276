"""Any bytes, headers, options and archives are read or refused in one line: made up by hypothesis."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aalp.cli import main
from aalp.commands.yaml_file import read_yaml
from aalp.data.sources import DataOptions, load_source
from aalp.errors import AalpError
from aalp.store.checkpoint import read_foreign_tensors, read_metadata, read_tensors, write_tensors
from aalp.store.records import read_record

FUZZ = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.text(max_size=8)
ITEMS = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(NAMES, SCALARS, max_size=3)
JSON = ITEMS | st.lists(ITEMS, max_size=3) | st.dictionaries(NAMES, ITEMS, max_size=3)


def attempt(read: Callable[[], object]) -> None:
    with contextlib.suppress(AalpError):
        read()


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_configuration_a_record_and_a_checkpoint_or_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    for read in (read_yaml, read_metadata, read_tensors, read_foreign_tensors):
        attempt(lambda read=read: read(path))
    attempt(lambda: read_record(path, "evaluation"))
    (tmp_path / "file.pt").write_bytes(content)
    attempt(lambda: read_foreign_tensors(tmp_path / "file.pt"))


@FUZZ
@given(header=JSON, data=st.binary(max_size=16))
def test_any_header_is_a_checkpoint_or_an_error(header: object, data: bytes, tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": {"aalp": json.dumps(header)}, "w": header}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    for read in (read_metadata, read_tensors, read_foreign_tensors):
        attempt(lambda read=read: read(path))


@FUZZ
@given(options=st.dictionaries(st.sampled_from(["threat", "training", "method", "data", "seed", "model", "checkpoint"]), JSON))
def test_any_configuration_is_understood_or_refused_in_one_line(
    options: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({**options, "objective": "none-of-that-name"}))
    capfd.readouterr()
    assert main(["train", "--config", str(path), "--run", str(tmp_path / "run")]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@FUZZ
@given(metadata=st.dictionaries(st.sampled_from(["model", "classes", "image_shape", "threat", "kind"]), JSON))
def test_any_metadata_of_weights_is_understood_or_refused_in_one_line(
    metadata: dict[str, object], tmp_path: Path, tiny_npz: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(
        path, {"w": torch.ones(1)}, {"model": "small-cnn", "classes": ["0", "1", "2"], "image_shape": [1, 8, 8], **metadata}
    )
    capfd.readouterr()
    words = ["evaluate", str(path), "--data", f"npz:{tiny_npz}", "--attacks", "fgsm", "--out", str(tmp_path), "--quiet"]
    assert main(words) == 2
    assert capfd.readouterr().err.count("\n") == 1


@FUZZ
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), kept=st.floats(0.1, 1))
def test_a_changed_or_cut_archive_of_images_is_read_or_refused(
    place: int, value: int, kept: float, tmp_path: Path, tiny_npz: Path
) -> None:
    content = bytearray(tiny_npz.read_bytes())
    content[place % len(content)] = value
    path = tmp_path / "changed.npz"
    path.write_bytes(content[: int(kept * len(content))] if value % 2 else content)
    attempt(lambda: load_source(f"npz:{path}"))


@FUZZ
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), kept=st.floats(0, 1))
def test_a_changed_or_cut_image_is_read_or_refused(
    place: int, value: int, kept: float, tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    root = tmp_path / "pictures"
    if not root.exists():
        for name in ("cat", "dog"):
            write_images(root / name, 2)
    path = root / "cat" / "000.png"
    original = (root / "dog" / "000.png").read_bytes()
    content = bytearray(original)
    content[place % len(content)] = value
    path.write_bytes(content[: int(kept * len(content))] if value % 2 else content)
    attempt(lambda: load_source(f"folder:{root}", DataOptions(size=8)))
