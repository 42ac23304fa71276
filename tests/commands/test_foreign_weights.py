"""Weights that come without a run: of another program, alone, or with classes in another order than the data's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

from aalp.cli import main
from aalp.commands.loading import load
from aalp.data.sources import load_source

WORDS = ["--attacks", "fgsm,pgd-3,cw-3", "--quiet=true"]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in load(run).network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.safetensors", lambda tensors, path: save_file(tensors, path)),
        ("w.pt", lambda tensors, path: torch.save(tensors, path)),
        ("w.pth", lambda tensors, path: torch.save({"state_dict": tensors, "epoch": 1}, path)),
        ("w.pt", lambda tensors, path: torch.save({f"module.{n}": t for n, t in tensors.items()}, path)),
    ],
)
def test_weights_of_another_program_get_the_same_figures(
    name: str, write: Any, tiny_run: Path, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tensors_of(tiny_run), tmp_path / name)
    words = ["--model", "small-cnn", "--data", f"npz:{tiny_npz}", "--eps", "0.3", *WORDS]
    assert main(["evaluate", name, *words]) == 0
    assert main(["evaluate", str(tiny_run), "--eps", "0.3", *WORDS, "--out", "ours"]) == 0
    foreign, ours = (json.loads(path.read_text()) for path in (Path("evaluations/w-001.json"), Path("ours/best-001.json")))
    # Both normalise by the statistics of the training images.
    assert {key: foreign[key] for key in ("clean", "robust", "broken_by")} == {
        key: ours[key] for key in ("clean", "robust", "broken_by")
    }
    assert foreign["model"]["objective"] is None
    for told in ("model", "parameters", "mean", "std"):
        assert foreign["model"][told] == ours["model"][told] is not None


def test_a_measure_that_is_not_finite_is_left_out(tiny_run: Path, tiny_npz: Path, tmp_path: Path) -> None:
    tensors = tensors_of(tiny_run)
    huge = {name: 1e22 * value if name.startswith("logits.") else value for name, value in tensors.items()}
    save_file(huge, tmp_path / "w.safetensors")
    words = ["--model", "small-cnn", "--data", f"npz:{tiny_npz}", "--eps", "0.3", "--attacks", "pgd-3", "--quiet"]
    assert main(["evaluate", str(tmp_path / "w.safetensors"), *words, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "w-001.json").read_text())
    assert list(record["measures"]) == ["on", "n90", "n90_adversarial", "conflict_cosine"]
    # Each image's own stays in the table.
    assert math.inf in parquet.read_table(tmp_path / "w-001.parquet").to_pydict()["pairing_distance"]


def test_a_lone_weights_file_of_ours_knows_its_model_and_its_threat(tiny_run: Path, tiny_npz: Path, tmp_path: Path) -> None:
    file = str(tiny_run / "weights" / "last.safetensors")
    assert main(["evaluate", file, "--data", f"npz:{tiny_npz}", *WORDS, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "last-001.json").read_text())
    assert record["threat"] == {"norm": "Linf", "eps": 0.1}
    assert record["model"]["model"] == "small-cnn"


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((3, 8, 8), "--data_options.channels 1"),
        ((3, 20, 16), "--data_options.channels 1 --data_options.size 8"),
        ((4, 8, 8), "use data of that size"),
    ],
)
def test_images_of_another_shape_are_brought_to_the_model_s_by_what_the_error_says(
    shape: tuple[int, int, int], remedy: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = np.zeros((6, *shape), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    words = ["evaluate", str(tiny_run / "weights" / "best.safetensors"), "--data", f"npz:{tmp_path / 'data.npz'}"]
    words += ["--attacks", "fgsm", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.strip().endswith(remedy)
    if remedy.startswith("--"):
        assert main([*words, *error.split(" with ")[1].split()]) == 0


@pytest.mark.parametrize("verb", ["evaluate", "audit"])
def test_classes_in_another_order_are_put_in_that_of_the_data(
    verb: str, write_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["path,label,split"]
    for split, count in (("train", 20), ("test", 4)):
        for tone, name in ((0, "10"), (180, "9")):
            files = sorted(write_images(Path("nums", split, name), count, tone=tone).iterdir())
            rows += [f"{file},{name},{split}" for file in files]
    Path("nums.csv").write_text("\n".join(rows) + "\n")
    Path("others.csv").write_text("\n".join(rows).replace(",9,", ",11,") + "\n")
    # Folders come in the order of their names, the numbers of a CSV in that of their size.
    orders = [load_source(data).classes for data in ("folder:nums", "csv:nums.csv", "csv:others.csv")]
    assert orders == [("10", "9"), ("9", "10"), ("10", "11")]
    words = ["--model", "small-cnn", "--objective", "standard", "--training.epochs", "8", "--training.batch_size", "8"]
    assert main(["train", "--data", "folder:nums", "--run", "run", *words, "--training.ema", "0", "--quiet"]) == 0

    def seen(data: str, out: str) -> tuple[float, str]:
        attacks = ["--attacks", "clean"] if verb == "evaluate" else []
        capsys.readouterr()
        main([verb, "run", "--data", data, "--quiet", "--out", out, *attacks])
        (record,) = Path(out).glob("*.json")
        return json.loads(record.read_text())["clean"], capsys.readouterr().err

    assert seen("folder:nums", "own") == (1.0, "")
    clean, said = seen("csv:nums.csv", "reordered")
    assert clean == 1.0
    assert "has the data's classes in another order: its logits are put in the data's" in said
    assert "names other classes than the data ('9' where it has '11')" in seen("csv:others.csv", "others")[1]
