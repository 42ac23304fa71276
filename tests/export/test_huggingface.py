"""Folders that Hugging Face transformers loads: with code and without, their image processor, in a pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aalp.data.images import Decoding, Resizing, decode
from aalp.export.export import export_model
from aalp.export.subject import Subject
from aalp.models.catalog import build


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_resnet", "thin-resnet"])
def test_a_timm_model_loads_in_transformers_without_code_and_other_models_with(model: str, tmp_path: Path) -> None:
    shape = (3, 160, 160) if model.startswith("timm") else (1, 9, 9)
    torch.manual_seed(0)
    classifier = build(model, 4, shape, None, ((0.4,) * shape[0], (0.2,) * shape[0])).eval().requires_grad_(False)
    metadata = {"model": model, "classes": ["a", "b", "c", "d"], "image_shape": shape, "threat": {"norm": "l2", "eps": 0.5}}
    export_model(Subject(classifier, metadata, "run"), "hf-folder", tmp_path / "hf", {})
    code = list((tmp_path / "hf").glob("*.py"))
    assert bool(code) != model.startswith("timm")
    assert ("trust_remote_code" in (tmp_path / "hf" / "README.md").read_text()) == bool(code)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_the_image_processor_takes_images_of_any_number_of_channels(
    channels: int, tmp_path: Path, modules_of_transformers: None
) -> None:
    from transformers import AutoImageProcessor

    classifier = build("small-cnn", 2, (channels, 9, 9)).eval().requires_grad_(False)
    metadata = {"model": "small-cnn", "classes": ["a", "b"], "image_shape": (channels, 9, 9)}
    export_model(Subject(classifier, metadata, "run"), "hf-folder", tmp_path / "hf", {})  # compares the logits itself
    images = torch.randint(0, 256, (2, channels, 9, 9), dtype=torch.uint8)
    found = AutoImageProcessor.from_pretrained(tmp_path / "hf")(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, images / 255)


@pytest.mark.parametrize("resizing", ["stretch", "crop"])
@pytest.mark.parametrize("model", ["timm:test_resnet", "small-cnn"])
def test_the_image_processor_resizes_as_the_training_did(
    model: str, resizing: Resizing, tmp_path: Path, modules_of_transformers: None
) -> None:
    from transformers import AutoImageProcessor

    classifier = build(model, 2, (3, 32, 32), None, ((0.0,) * 3, (1.0,) * 3)).eval().requires_grad_(False)
    metadata = {"model": model, "classes": ["a", "b"], "image_shape": (3, 32, 32), "resizing": resizing}
    subject = Subject(classifier, metadata, "run")
    export_model(subject, "hf-folder", tmp_path / "hf", {})
    blobs = np.random.default_rng(0).integers(0, 256, (4, 8, 3)).astype(np.uint8)
    picture = Image.fromarray(blobs).resize((120, 60))
    picture.save(tmp_path / "wide.png")
    wanted = torch.from_numpy(decode(tmp_path / "wide.png", "wide", Decoding((3, 32, 32), resizing)).copy()) / 255
    (found,) = AutoImageProcessor.from_pretrained(tmp_path / "hf")(picture, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in subject.normalisation)
    normalised = (wanted - mean) / std if model.startswith("timm:") else wanted
    torch.testing.assert_close(found, normalised, atol=0.05, rtol=0)


def test_the_image_processor_makes_rgb_of_pictures_as_the_training_did(tmp_path: Path, modules_of_transformers: None) -> None:
    from transformers import AutoImageProcessor

    classifier = build("small-cnn", 2, (3, 9, 9)).eval().requires_grad_(False)
    metadata = {"model": "small-cnn", "classes": ["a", "b"], "image_shape": (3, 9, 9)}
    export_model(Subject(classifier, metadata, "run"), "hf-folder", tmp_path / "hf", {})
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8))
    for kind in ("L", "P", "CMYK", "RGBA"):
        file = tmp_path / f"{kind}.tif"
        colours.convert(kind).save(file)
        with Image.open(file) as picture:
            (found,) = processor(picture, return_tensors="pt")["pixel_values"]
        wanted = torch.from_numpy(decode(file, kind, Decoding((3, 9, 9), None)).copy()) / 255
        torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pipeline_of_transformers_says_what_the_network_says(
    channels: int, tmp_path: Path, modules_of_transformers: None
) -> None:
    from transformers import pipeline

    torch.manual_seed(0)
    classifier = build("small-cnn", 3, (channels, 9, 9)).eval().requires_grad_(False)
    metadata = {"model": "small-cnn", "classes": ["a", "b", "c"], "image_shape": (channels, 9, 9)}
    export_model(Subject(classifier, metadata, "run"), "hf-folder", tmp_path / "hf", {})
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, channels)).astype(np.uint8)
    wanted = classifier(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).softmax(1)[0]
    judge = pipeline("image-classification", model=str(tmp_path / "hf"), trust_remote_code=True, device="cpu")
    found = {answer["label"]: answer["score"] for answer in judge(Image.fromarray(pixels.squeeze()))}
    assert [found[name] for name in "abc"] == pytest.approx(wanted.tolist(), abs=1e-5)
