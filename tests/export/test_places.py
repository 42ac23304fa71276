"""Where exports lie, and who may read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aalp.export.export import FORMATS, export_model
from aalp.export.subject import Subject
from aalp.models.catalog import build
from aalp.store.files import umask


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(("name", "model"), [*((name, "small-cnn") for name in FORMATS), ("hf-folder", "timm:test_resnet")])
def test_every_file_is_as_readable_as_others_of_the_user(name: str, model: str, tmp_path: Path) -> None:
    shape = (3, 32, 32)
    classifier = build(model, 2, shape).eval().requires_grad_(False)
    subject = Subject(classifier, {"model": model, "classes": ["a", "b"], "image_shape": shape}, "run")
    export_model(subject, name, tmp_path / "there", {})
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(
        (path.name for path in files), oct(0o666 & ~umask())
    )
