"""Tensors on disk: safetensors with a JSON header of our own. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aalp.errors import RunError
from aalp.store.files import write_atomically

FORMAT = 1


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"aalp": json.dumps({"format": FORMAT, **metadata}, sort_keys=True)}
    write_atomically(path, save(plain, metadata=header))


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON metadata of a file that `write_tensors` wrote.

    Raises:
        RunError: the file is missing, not safetensors, or not ours.
    """
    return _read(path, with_tensors=False)[1]


def is_ours(path: Path) -> bool:
    """Whether aalp wrote this weights file, in whatever version.

    Raises:
        RunError: it calls itself safetensors and is not.
    """
    return path.suffix == ".safetensors" and "aalp" in _open(path, with_tensors=False)[1]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and metadata of a file that `write_tensors` wrote.

    Raises:
        RunError: the file is missing, not safetensors, or not ours.
    """
    return _read(path, with_tensors=True)


def read_foreign_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file, or of a `torch.save`d state dict that holds tensors only.

    Raises:
        RunError: the file is missing or is neither; nothing in it is executed.
    """
    if path.suffix == ".safetensors":
        return _open(path, with_tensors=True)[0]
    if not path.is_file():
        raise RunError(f"there is no file '{path}': name a .safetensors file or a state dict")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it does not unpickle
        raise RunError(
            f"'{path}' is not a plain state dict: {str(error).splitlines()[0]}; save model.state_dict() as safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RunError(f"'{path}' holds other things than tensors: save model.state_dict() alone")
    return {str(name): value for name, value in state.items()}


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = _open(path, with_tensors)
    try:
        metadata = json.loads(header["aalp"])
        version = metadata["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"'{path}' was not written by aalp: name its model with --model to load the weights alone") from error
    if version != FORMAT:
        raise RunError(f"'{path}' has format {version} and this aalp reads {FORMAT}: use the aalp version that wrote it")
    return tensors, metadata


def _open(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise RunError(f"there is no file '{path}': name a run directory or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"'{path}' is not a readable safetensors file: {error}; use another checkpoint") from error
