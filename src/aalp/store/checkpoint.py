"""Tensors on disk: safetensors with a JSON header of our own, and a checksum over every byte. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from aalp.errors import RunError
from aalp.store.files import write_atomically

FORMAT = 2
FORMATS_READ = (1, 2)
"""Format 1 is the same without the checksum."""

BLANK = "0" * 64
"""What stands in the checksum's place while the checksum is taken (SHA-256, in hexadecimal)."""

BEFORE_CHECKSUM = b'\\"checksum\\": \\"'
"""How its key looks in the file: JSON inside a JSON string. A name or value that a user chose is escaped once more."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"aalp": json.dumps({"checksum": BLANK, "format": FORMAT, **metadata}, sort_keys=True)}
    content = bytearray(save(plain, metadata=header))
    place = _checksum_place(content)
    content[place] = hashlib.sha256(content).hexdigest().encode()
    write_atomically(path, content)


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON metadata of a file that `write_tensors` wrote.

    Raises:
        RunError: the file is missing, not safetensors, not ours, or a byte of it has changed since it was written.
    """
    return _ours(path, *_open(path))


def is_ours(path: Path) -> bool:
    """Whether aalp wrote this weights file, in whatever version.

    Raises:
        RunError: it calls itself safetensors and is not.
    """
    return path.suffix == ".safetensors" and "aalp" in _open(path)[1]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and metadata of a file that `write_tensors` wrote.

    Raises:
        RunError: as `read_metadata`.
    """
    content, header = _open(path)
    metadata = _ours(path, content, header)
    return _tensors(path, content), metadata


CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net")
"""Under what names trainers keep the weights in a checkpoint; where there are several, the first."""

AVERAGE_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Under what names they keep an average of the weights beside them (timm the first, torchvision the second)."""


def read_foreign_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file, or of a `torch.save`d state dict that holds tensors only.

    Raises:
        RunError: the file is missing, is neither, or holds two sets of weights; nothing in it is executed.
    """
    if path.suffix == ".safetensors":
        return _tensors(path, _open(path)[0])
    if not path.is_file():
        raise RunError(f"there is no file '{path}': name a .safetensors file or a state dict")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it does not unpickle
        # Torch's own words tell how to run what is in it.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {code.group(1)}, which is not run" if code else "torch cannot read it as tensors"
        raise RunError(f"'{path}' is not a plain state dict: {reason}; save model.state_dict() as safetensors") from error
    if isinstance(state, dict):
        both = [key for key in (*CHECKPOINT_KEYS, *AVERAGE_KEYS) if isinstance(state.get(key), dict)]
        if len(both) > 1 and both[-1] in AVERAGE_KEYS:  # which of the two a published figure is of, the file does not say
            raise RunError(
                f"'{path}' holds two sets of weights, '{both[0]}' and '{both[-1]}': save the one that you mean alone"
            )
    for key in CHECKPOINT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RunError(f"'{path}' holds other things than tensors: save model.state_dict() alone")
    return {str(name): value for name, value in state.items()}


def state_for(module: nn.Module, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Tensors from a file as `module.load_state_dict` wants them: with the versions of modules, which a file does not hold.

    A module converts, or refuses, what it takes for an older version's (torchvision's MNASNet refuses where none is given).
    Whatever has all of the module's names is of its own version; the rest goes without, as old files always did.
    """
    state, own = OrderedDict(tensors), module.state_dict()
    if own.keys() <= state.keys():
        state._metadata = own._metadata  # type: ignore[attr-defined]
    return state


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _open(path: Path) -> tuple[bytes, dict[str, str]]:
    """A safetensors file's bytes and the text metadata of its header."""
    if not path.is_file():
        raise RunError(f"there is no file '{path}': name a run directory or a .safetensors file")
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        if not 2 <= size <= len(content) - 8:
            raise ValueError(f"its header should have {size} bytes and the file has {len(content)}")
        header = json.loads(content[8 : 8 + size])
        metadata = header.get("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is not a mapping")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return content, metadata


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return dict(load(content))
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        # Offsets, shapes and types that do not agree with one another or with the file's length.
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(f"'{path}' is not a readable safetensors file: {error}; use another checkpoint")


def _ours(path: Path, content: bytes, header: Mapping[str, Any]) -> dict[str, Any]:
    """Our own metadata, once the file is seen to be whole."""
    try:
        metadata = json.loads(header["aalp"])
        version = metadata["format"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"'{path}' was not written by aalp: name its model with --model to load the weights alone") from error
    if version not in FORMATS_READ:
        raise RunError(f"'{path}' has format {version} and this aalp reads {FORMAT}: use the aalp version that wrote it")
    # Also where the format claims that there is none: the claim itself may be what changed.
    if (version == FORMAT or "checksum" in metadata) and not _is_whole(content):
        raise RunError(f"'{path}' is damaged, its checksum does not fit its content: use another checkpoint")
    return dict(metadata)


def _is_whole(content: bytes) -> bool:
    try:
        place = _checksum_place(content)
    except ValueError:
        return False
    digest = hashlib.sha256(content[: place.start])
    digest.update(BLANK.encode())
    digest.update(memoryview(content)[place.stop :])
    return content[place] == digest.hexdigest().encode()


def _checksum_place(content: bytes | bytearray) -> slice:
    start = content.index(BEFORE_CHECKSUM) + len(BEFORE_CHECKSUM)
    return slice(start, start + len(BLANK))
