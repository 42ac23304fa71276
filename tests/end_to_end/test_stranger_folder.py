"""A stranger's folder of 43 classes, images of every size: checked, trained on, evaluated, reported, taken away as ONNX."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import aalp
from aalp.cli import main
from aalp.data.sources import DataOptions, load_source
from aalp.data.split import as_float
from aalp.store.records import read_record
from aalp.store.run import RunDirectory

CLASSES = 43
"""As many as the German traffic signs have."""


@dataclass(frozen=True)
class Stranger:
    """What a stranger has and what came of it; not to be written to.

    Attributes:
        folder: DIR/train/CLASS and DIR/test/CLASS.
        run: a finished run on it, evaluated.
        size: what the images were resized to.
    """

    folder: Path
    run: RunDirectory
    size: int


def sign(label: int, random: np.random.Generator) -> Image.Image:
    """A picture of a class, of some size: a colour of its own (of 7 x 7, without the greys) over another, and noise."""
    width, height = (int(side) for side in random.integers(20, 70, 2))
    tones = [tuple(255 * (1 + (code >> bit & 1)) // 3 for bit in range(3)) for code in range(1, 8)]
    pixels = np.empty((height, width, 3), np.int64)
    pixels[: height // 2], pixels[height // 2 :] = tones[label % 7], tones[label // 7]
    return Image.fromarray((pixels + random.integers(-20, 21, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: JPEG and PNG, 8 training and 2 test images a class, fewer of some."""
    root = tmp_path_factory.mktemp("stranger") / "signs"
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for label in range(CLASSES):
            folder = root / split / f"sign {label:02d}"
            folder.mkdir(parents=True)
            for number in range(2 if split == "train" and label == 7 else count):
                sign(label, random).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    return root


@pytest.fixture(scope="session")
def stranger(signs: Path) -> Stranger:
    """The folder with a run of the command line on it, of a few epochs, evaluated with PGD."""
    run, size = signs.parent / "run", 12
    words = ["train", "--config", "folder", "--data", f"folder:{signs}", "--data_options.size", str(size), "--quiet"]
    words += ["--model", "small-cnn", "--objective", "alp", "--training.augment", "flip", "--training.balance", "classes"]
    words += ["--training.epochs", "14", "--training.batch_size", "32", "--training.lr", "0.1", "--training.clip", "1"]
    words += ["--training.ema", "0.8", "--training.validation_steps", "1", "--data_options.validation", "10"]
    words += ["--attack.steps", "1", "--threat.eps", "8/255", "--run", str(run)]
    assert main([*words, "--evaluate", "--evaluation.attacks", "fgsm,pgd-5"]) == 0
    return Stranger(signs, RunDirectory(run), size)


def test_the_folder_is_checked(signs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", f"folder:{signs}", "--out", str(tmp_path / "check"), "--quiet"]) == 0
    text = capfd.readouterr().out
    assert "43 classes" in text
    assert "sizes differ: train with --data_options.size" in text
    assert "the largest class has 4.0 times the images of the smallest" in text
    with Image.open(tmp_path / "check" / "contact-sheet.png") as sheet:
        assert sheet.height > CLASSES * 64


def test_the_run_learned_the_classes_and_stands_up_to_small_perturbations(stranger: Stranger) -> None:
    record = read_record(stranger.run.evaluations / "test.json", "evaluation")
    assert record["images"] == 2 * CLASSES
    # By chance 2 %.
    assert record["clean"] >= 0.6
    assert 0.2 <= record["robust"] <= record["clean"]


def test_what_it_knows_of_the_data_is_in_its_weights(stranger: Stranger) -> None:
    from aalp.store.checkpoint import read_metadata

    metadata = read_metadata(stranger.run.weights("best"))
    assert metadata["classes"] == [f"sign {label:02d}" for label in range(CLASSES)]
    assert metadata["image_shape"] == [3, stranger.size, stranger.size]
    assert json.loads((stranger.run.evaluations / "test.json").read_text())["data"]["digest"] == metadata["data"]["digest"]


def test_it_is_reported_in_one_file(stranger: Stranger, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(stranger.run.path), "--out", str(page)]) == 0
    assert f"folder:{stranger.folder}" in page.read_text()


def test_what_is_taken_away_as_onnx_predicts_the_same(stranger: Stranger, tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    assert main(["export", str(stranger.run.path), "--to", "onnx", "--out", str(folder)]) == 0
    test = load_source(f"folder:{stranger.folder}", DataOptions(size=stranger.size)).test
    images = as_float(test.read(torch.arange(len(test))))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = aalp.load(stranger.run.path)(images)
    assert torch.equal(torch.from_numpy(logits).argmax(1), expected.argmax(1))
    assert len(images) == 2 * CLASSES
