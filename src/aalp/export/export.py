"""Writes an export, loads it back, compares the logits, and only then gives it its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aalp.errors import AalpError, OptionError, RunError, unknown_name
from aalp.export.card import card
from aalp.export.huggingface import load_hf_folder, write_hf_folder
from aalp.export.plain_formats import (
    load_onnx,
    load_program,
    load_safetensors,
    write_onnx,
    write_program,
    write_safetensors,
)
from aalp.export.robustbench import load_robustbench, write_robustbench
from aalp.export.subject import Predict, Subject, compare
from aalp.store.files import aside_of, write_atomically
from aalp.store.records import write_record
from aalp.store.run import put_in_place


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: (subject, folder) -> None.
        load: (subject, folder) -> what the files in the folder predict.
        tolerance: largest difference of a logit, as a share of the largest logit.
        packages: what it needs besides our own dependencies, and `extra`, which brings them.
    """

    write: Callable[[Subject, Path], None]
    load: Callable[[Subject, Path], Predict]
    tolerance: float = 1e-5
    packages: tuple[str, ...] = ()
    extra: str = ""


FORMATS: dict[str, Format] = {
    "safetensors": Format(write_safetensors, load_safetensors),
    "torch-export": Format(write_program, load_program),
    # Another library's kernels add in another order: 7e-7 at most was seen on five networks (docs/export.md).
    "onnx": Format(write_onnx, load_onnx, 2e-5, ("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "hf-folder": Format(write_hf_folder, load_hf_folder, packages=("transformers",), extra="hf"),
    "robustbench": Format(write_robustbench, load_robustbench),
}


def check_format(name: str) -> Format:
    """The format of this name, with everything that it needs installed.

    Raises:
        OptionError: there is no such format.
        AalpError: a package is missing.
    """
    if name not in FORMATS:
        raise OptionError(unknown_name("format", name, FORMATS))
    found = FORMATS[name]
    missing = [package for package in found.packages if find_spec(package) is None]
    if missing:
        raise AalpError(f'the format {name} needs {", ".join(missing)}: pip install "aalp[{found.extra}]"')
    return found


def export_model(subject: Subject, name: str, folder: Path, about: Mapping[str, Any], exactly: bool = True) -> dict[str, Any]:
    """Export a classifier into a new folder, with a model card and a record; the record.

    Args:
        name: a key of `FORMATS`.
        folder: to be made; it is there when everything in it has been loaded back and compared.
        about: what the record says besides: the command, the weights file.
        exactly: this folder and no other; else the next free number, where another process has taken it meanwhile.

    Raises:
        OptionError: unknown format.
        RunError: the folder exists, or cannot be made.
        ModelError: the network cannot be written so, or what was written gives other logits.
    """
    found = check_format(name)
    if folder.exists() or folder.is_symlink():
        raise RunError(f"'{folder}' exists already: choose another --out")
    with aside_of(folder) as aside:
        try:
            found.write(subject, aside)
            checked = compare(subject, found.load(subject, aside), found.tolerance)
            files = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
            write_atomically(aside / "README.md", card(subject, name, files, checked).encode())
            content = {**about, "format": name, "files": files, "loaded_back": checked, **subject.travelling()}
            record = write_record(aside / "export.json", "export", content)
            place = put_in_place(aside, folder, exactly)
        except OSError as error:
            raise RunError(f"'{folder}' could not be written: {error.strerror}; free space or choose another --out") from error
    return {**record, "path": str(place)}
