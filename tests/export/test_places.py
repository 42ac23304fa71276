"""Where exports lie, and who may read them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from aalp.cli import main
from aalp.errors import RunError
from aalp.export import export as exporting
from aalp.export.export import FORMATS, export_model
from aalp.export.subject import Predict, Subject
from aalp.models.catalog import build
from aalp.store.files import umask


def _subject(model: str) -> Subject:
    shape = (3, 32, 32)
    classifier = build(model, 2, shape).eval().requires_grad_(False)
    return Subject(classifier, {"model": model, "classes": ["a", "b"], "image_shape": shape}, "run")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(("name", "model"), [*((name, "small-cnn") for name in FORMATS), ("hf-folder", "timm:test_resnet")])
def test_every_file_is_as_readable_as_others_of_the_user(name: str, model: str, tmp_path: Path) -> None:
    export_model(_subject(model), name, tmp_path / "there", {})
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(
        (path.name for path in files), oct(0o666 & ~umask())
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize(("name", "model"), [*((name, "small-cnn") for name in FORMATS), ("hf-folder", "timm:test_resnet")])
def test_a_full_disk_is_told_as_one_and_nothing_is_left(name: str, model: str, tmp_path: Path) -> None:
    import resource

    subject, before = _subject(model), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # fewer bytes than any of the weights have
    try:
        with pytest.raises(RunError, match=r"could not be written: .*[Ff]ile too large.*; free space or choose another"):
            export_model(subject, name, tmp_path / "there", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_made_meanwhile_is_left_as_it_is(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    honest, made = FORMATS["safetensors"], (copied_run / "exports" / "safetensors-001", tmp_path / "mine")

    def meanwhile(subject: Subject, folder: Path) -> Predict:
        for place in made:
            place.mkdir(exist_ok=True)
            (place / "README.md").write_text("another's")
        return honest.load(subject, folder)

    monkeypatch.setitem(exporting.FORMATS, "safetensors", dataclasses.replace(honest, load=meanwhile))
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert capfd.readouterr().out.endswith(f"export: {copied_run / 'exports' / 'safetensors-002'}\n")
    assert (copied_run / "exports" / "safetensors-002" / "model.safetensors").is_file()
    shutil.rmtree(made[1])
    assert main(["export", str(copied_run), "--to", "safetensors", "--out", str(made[1])]) == 2
    assert capfd.readouterr() == ("", f"aalp: '{made[1]}' exists by now: choose another --out\n")
    for place in made:
        assert [(path.name, path.read_text()) for path in place.iterdir()] == [("README.md", "another's")]
