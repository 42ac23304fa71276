"""What exports of every kind of model need to be loaded as strangers load them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from aalp.commands.loading import load_model
from aalp.export.subject import Subject


@pytest.fixture
def modules_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty place for the code that transformers copies from folders, and none of it imported yet, as in a new process."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def subject(tiny_run: Path) -> Subject:
    loaded = load_model(tiny_run / "weights" / "best.safetensors")
    return Subject(loaded.classifier.to(memory_format=torch.contiguous_format), loaded.metadata, str(tiny_run))
