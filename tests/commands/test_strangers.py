"""What somebody else made and what it tries: each ends in one line, and none of its code runs."""

from __future__ import annotations

import dataclasses
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from bad_input import Creates

from aalp.cli import VERBS, main
from aalp.parsing import verb_function
from aalp.store.checkpoint import write_tensors

TRAIN = "train --run run --training.epochs 1 --training.batch_size 4 --attack.steps 1 --training.validation_steps 1 --quiet "


def png(width: int, height: int) -> bytes:
    """A grey PNG of this size, all black, of a few bytes a million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def picture_folder(folder: Path) -> Path:
    for name in ("cat", "dog"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            (folder / "pictures" / name / f"{number}.png").write_bytes(png(8, 8))
    return folder / "pictures"


def bomb(folder: Path) -> None:
    (picture_folder(folder) / "cat" / "0.png").write_bytes(png(9_000, 9_000))


def huge_bomb(folder: Path) -> None:
    (picture_folder(folder) / "cat" / "0.png").write_bytes(png(2**31 - 1, 2**31 - 1))


def linked_image(folder: Path) -> None:
    (folder / "secret.png").write_bytes(png(8, 8))
    (picture_folder(folder) / "dog" / "9.png").symlink_to(folder / "secret.png")


def linked_class(folder: Path) -> None:
    pictures = picture_folder(folder)
    (folder / "elsewhere").mkdir()
    (pictures / "dog").rename(folder / "elsewhere" / "dog")
    (pictures / "dog").symlink_to(folder / "elsewhere" / "dog")


def postscript(folder: Path) -> None:
    (picture_folder(folder) / "cat" / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")


def csv_outside(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(png(8, 8))
    picture_folder(folder)
    (folder / "pictures" / "list.csv").write_text("path,label\ncat/0.png,cat\n../../secret.png,dog\n")


def csv_link(folder: Path) -> None:
    linked_image(folder)
    (folder / "pictures" / "list.csv").write_text("path,label\ncat/0.png,cat\ndog/9.png,dog\n")


def csv_bomb(folder: Path) -> None:
    bomb(folder)
    rows = [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(3)]
    (folder / "pictures" / "list.csv").write_text("\n".join(["path,label", *rows]))


def hub_folder_of_code(folder: Path) -> None:
    """A data set or a model that comes with a script of its name, as old ones did."""
    (folder / "strange").mkdir()
    code = f"import pathlib\npathlib.Path({str(folder / 'executed')!r}).touch()\n"
    (folder / "strange" / "strange.py").write_text(code)
    about = {"model_type": "vit", "auto_map": {"AutoModelForImageClassification": "strange.Model"}}
    (folder / "strange" / "config.json").write_text(json.dumps(about))


def object_npz(folder: Path) -> None:
    images, labels = np.zeros((8, 8, 8), np.uint8), np.array([Creates(folder / "executed")] * 8, dtype=object)
    np.savez(folder / "evil.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)


def traversal_npz(folder: Path) -> None:
    with zipfile.ZipFile(folder / "evil.npz", "w") as archive:
        archive.writestr("../executed", "outside")
        archive.writestr("../../executed.npy", "outside")


def npz_bomb(folder: Path) -> None:
    """A member of a few bytes that says it unpacks to 1.1 GB, as one of zeros would."""
    with zipfile.ZipFile(folder / "evil.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(1000))
    content = bytearray((folder / "evil.npz").read_bytes())
    size_in_directory = content.index(b"PK\x01\x02") + 24
    content[size_in_directory : size_in_directory + 4] = struct.pack("<I", 1_100_000_000)
    (folder / "evil.npz").write_bytes(content)


def claiming_npz(folder: Path) -> None:
    """An array that says it has 10^15 elements."""
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,), }"
    text = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
    with zipfile.ZipFile(folder / "evil.npz", "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", text)


def yaml_with(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "evil.yaml").write_text(text.replace("EXECUTED", str(folder / "executed")))


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIG = "train --run run --config evil.yaml"
FOLDER = TRAIN + "--data folder:pictures"
CSV = TRAIN + "--data csv:pictures/list.csv"
NPZ = TRAIN + "--data npz:evil.npz"

CALL = "{class_path: os.system, init_args: {command: mkdir EXECUTED}}"
NO_ARGUMENTS = "takes no arguments"
STRANGERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "an image that claims 81 million pixels": (bomb, FOLDER, "claims to be 9000x9000 pixels, more than 50,000,000"),
    "an image that claims 2^62 pixels": (huge_bomb, FOLDER, "is not a readable image"),
    "an image that is PostScript": (postscript, FOLDER, "is not a readable image"),
    "a link to an image outside": (linked_image, FOLDER, "dog/9.png' is a link that leads out of 'pictures'"),
    "a link to a folder outside": (linked_class, FOLDER, "pictures/dog' is a link that leads out of 'pictures'"),
    "a CSV with a path that leads outside": (csv_outside, CSV, "names '../../secret.png', which leads out of 'pictures'"),
    "a CSV with a link that leads outside": (csv_link, CSV, "names 'dog/9.png', which leads out of 'pictures'"),
    "a CSV with an image that claims 81 million pixels": (csv_bomb, CSV, "claims to be 9000x9000 pixels"),
    "a Hugging Face data set with a script": (hub_folder_of_code, TRAIN + "--data hf:./strange", "cannot be loaded"),
    "a Hugging Face model with code": (
        hub_folder_of_code,
        TRAIN + "--data digits --model hf:./strange",
        "has auto_map in its configuration",
    ),
    "an npz of objects": (object_npz, NPZ, "is not a readable .npz of plain arrays"),
    "an npz with paths that lead outside": (traversal_npz, NPZ, "lacks x_train, y_train, x_test, y_test"),
    "an npz that unpacks to a gigabyte": (npz_bomb, NPZ, "unpacks 'x_train.npy' to 1.1 GB"),
    "an npz that claims 10^15 pixels": (claiming_npz, NPZ, "is not a readable .npz of plain arrays"),
    "YAML with a Python tag": (yaml_with("data: !!python/object/apply:os.mkdir ['EXECUTED']"), CONFIG, "could not determine"),
    "YAML with a class path": (
        yaml_with("threat: {class_path: os.mkdir, init_args: {path: EXECUTED}}"),
        CONFIG,
        "unknown option threat.class_path: remove it",
    ),
    "YAML with a class path among a model's arguments": (
        yaml_with(f"model_options: {{arguments: {{a: {CALL}}}}}"),
        CONFIG,
        NO_ARGUMENTS,
    ),
    "YAML with a class path in a list": (yaml_with(f"model_options: {{arguments: {{a: [{CALL}]}}}}"), CONFIG, NO_ARGUMENTS),
    "YAML with a class path deep inside": (
        yaml_with(f"model_options: {{arguments: {{a: {{b: {CALL}}}}}}}"),
        CONFIG,
        "model_options.arguments",
    ),
    "YAML with a class path in a string": (
        yaml_with(f"model_options: {{arguments: {{a: '{CALL}'}}}}"),
        CONFIG,
        NO_ARGUMENTS,
    ),
    "YAML with a class path in a variant": (
        yaml_with(f"objectives: at\nvariants: {{odd: {{objective: {CALL}}}}}"),
        CONFIG.replace("train", "compare"),
        "unknown objective",
    ),
    "YAML with a class path in a space": (
        yaml_with(f"space: {{training.lr: {CALL}}}"),
        CONFIG.replace("train", "search"),
        "training.lr",
    ),
    "YAML of aliases of aliases": (yaml_with(LAUGHS), CONFIG, "more than 100000 values"),
    "YAML that contains itself": (yaml_with("data: &a [*a]"), CONFIG, "is not readable YAML"),
    "YAML of 100,000 brackets": (yaml_with("data: " + "[" * 100_000), CONFIG, "is not readable YAML"),
    "YAML with the 99th of a month": (yaml_with("data: 2020-01-99"), CONFIG, "is not readable YAML"),
    "a number where options go": (yaml_with("data: digits\nthreat: 3"), CONFIG, "threat is 3"),
}


@pytest.mark.parametrize(("make", "words", "needle"), STRANGERS.values(), ids=STRANGERS.keys())
def test_what_a_stranger_made_ends_in_one_line_and_runs_nothing(
    make: Callable[[Path], object],
    words: str,
    needle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    make(inside)
    assert main(words.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("aalp: ")
    assert err.count("\n") == 1
    assert needle in err
    assert not list(tmp_path.rglob("executed*"))
    assert not (inside / "run").exists()


EVIL_CODE = "import pathlib\npathlib.Path('executed').mkdir()\n"


@pytest.mark.parametrize(
    "words", ["evaluate RUN --attacks fgsm", "audit RUN", "analyze RUN", "train --resume RUN", "export RUN"]
)
def test_a_strangers_run_directory_calls_no_function_that_its_options_name(
    words: str, copied_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((copied_run / "config.yaml").read_text())
    called = copied_run.parent / "executed"
    config["model_options"]["arguments"] = {"a": {"class_path": "os.mkdir", "init_args": {"path": str(called)}}}
    (copied_run / "config.yaml").write_text(yaml.safe_dump(config))
    main([str(copied_run) if word == "RUN" else word for word in words.split()])
    assert not called.exists()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("words", ["evaluate RUN --attacks fgsm", "audit RUN", "analyze RUN", "train --resume RUN"])
def test_a_strangers_run_directory_gets_its_code_run_by_no_verb(
    words: str, copied_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (copied_run.parent / "evil_nets.py").write_text(EVIL_CODE)
    monkeypatch.chdir(copied_run.parent)
    monkeypatch.syspath_prepend(copied_run.parent)
    config = yaml.safe_load((copied_run / "config.yaml").read_text())
    (copied_run / "config.yaml").write_text(yaml.safe_dump({**config, "model": "evil_nets:net"}))
    capfd.readouterr()
    assert main(words.replace("RUN", copied_run.name).split()) == 2
    err = capfd.readouterr().err
    assert "asks to run the code 'evil_nets:net': if you trust who made it, give --trust-model-code" in err
    assert err.count("\n") == 1
    assert not (copied_run.parent / "executed").exists()


def test_a_few_bytes_that_ask_for_a_model_of_terabytes_are_refused_before_it_is_built(
    tmp_path: Path, tiny_npz: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.safetensors"
    about = {"model": "small-cnn", "classes": ["0", "1", "2"], "image_shape": [1, 4096, 4096], "threat": {"eps": 0.1}}
    write_tensors(path, {"w": torch.ones(1)}, about)
    assert main(["evaluate", str(path), "--data", f"npz:{tiny_npz}", "--attacks", "fgsm"]) == 2
    assert "'small-cnn' has 13," in capfd.readouterr().err


# Fuzzing: whatever the bytes, a reader gives something or raises an AalpError.


def types_in(kind: object) -> set[object]:
    """A type hint and everything that it is made of, options of options included."""
    found = {kind} if isinstance(kind, Hashable) else set()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return found.union(*(types_in(hint) for hint in get_type_hints(kind).values()))
    return found.union(*(types_in(argument) for argument in get_args(kind) if not isinstance(argument, str)))


@pytest.mark.parametrize("verb", VERBS)
def test_no_option_takes_just_anything(verb: str) -> None:
    # Where a type is `Any`, the parser builds what a mapping with `class_path` names.
    hints = get_type_hints(verb_function(verb))
    hints.pop("return", None)
    found = {name: types_in(hint) & {Any, object, type} for name, hint in hints.items()}
    assert {name: bad for name, bad in found.items() if bad} == {}
