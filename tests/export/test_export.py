"""Every export is loaded as its own users load it, and says what the run says of real test images."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from aalp.cli import main
from aalp.commands.loading import load
from aalp.data.sources import load_source
from aalp.data.split import as_float
from aalp.errors import AalpError, ModelError, OptionError, RunError
from aalp.export import export as exporting
from aalp.export.export import FORMATS, check_format, export_model
from aalp.export.subject import Subject, compare
from aalp.store.checkpoint import read_metadata
from aalp.store.files import claimed


@pytest.fixture(scope="module")
def images(tiny_npz: Path) -> Tensor:
    """The 18 test images of the tiny run."""
    test = load_source(f"npz:{tiny_npz}").test
    return as_float(test.read(torch.arange(len(test))))


@pytest.fixture(scope="module")
def exports(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The finished run in every format."""
    folder = tmp_path_factory.mktemp("exports")
    for name in FORMATS:
        assert main(["export", str(tiny_run), "--to", name, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in FORMATS}


def from_safetensors(folder: Path, images: Tensor) -> Tensor:
    return load(folder / "model.safetensors")(images)


def from_torch_export(folder: Path, images: Tensor) -> Tensor:
    return torch.export.load(folder / "model.pt2").module()(images)


def from_onnx(folder: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def from_robustbench(folder: Path, images: Tensor) -> Tensor:
    spec = importlib.util.spec_from_file_location("model_of_robustbench", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Model()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model.eval()(images)


def from_hf_folder(folder: Path, images: Tensor) -> Tensor:
    """From 8-bit pictures, as a processor gets them."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pictures = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy().squeeze()) for image in images]
    return model(**processor(pictures, return_tensors="pt")).logits


READERS = {
    "safetensors": from_safetensors,
    "torch-export": from_torch_export,
    "onnx": from_onnx,
    "robustbench": from_robustbench,
    "hf-folder": from_hf_folder,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_an_export_says_what_the_run_says_in_batches_of_any_size(
    name: str, exports: dict[str, Path], tiny_run: Path, images: Tensor, modules_of_transformers: None
) -> None:
    wanted = load(tiny_run)(images)
    with torch.no_grad():
        for count in (1, 7, 18):
            logits = READERS[name](exports[name], images[:count])
            torch.testing.assert_close(logits, wanted[:count], rtol=1e-4, atol=1e-4)
            assert torch.equal(logits.argmax(1), wanted[:count].argmax(1))


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_says_how_near_the_logits_were_and_the_card_tells_it(name: str, exports: dict[str, Path]) -> None:
    record = json.loads((exports[name] / "export.json").read_text())
    checked = record["loaded_back"]
    assert checked["images"] == 12
    assert 0 <= checked["largest_difference"] <= checked["allowed_difference"]
    assert checked["allowed_difference"] == pytest.approx(FORMATS[name].tolerance * max(1, checked["largest_logit"]))
    assert checked["same_predictions"] == 12
    assert all((exports[name] / file).is_file() for file in record["files"])
    text = (exports[name] / "README.md").read_text()
    assert f"differ from the model's by at most {checked['largest_difference']:.2g}" in text
    assert yaml.safe_load(text.split("---")[1])["pipeline_tag"] == "image-classification"


def test_labels_and_threat_travel_with_the_weights_themselves(exports: dict[str, Path]) -> None:
    import onnx

    threat = {"norm": "linf", "eps": 0.1}
    graph = onnx.load(exports["onnx"] / "model.onnx")
    properties = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    config = json.loads((exports["hf-folder"] / "config.json").read_text())
    with zipfile.ZipFile(exports["torch-export"] / "model.pt2") as archive:
        (inside,) = [name for name in archive.namelist() if name.endswith("aalp.json")]
        program = json.loads(archive.read(inside))
    for found in (properties, config["aalp"], program, read_metadata(exports["safetensors"] / "model.safetensors")):
        assert found["classes"] == ["0", "1", "2"]
        assert found["threat"] == threat
    assert config["id2label"] == {"0": "0", "1": "1", "2": "2"}
    with safe_open(exports["hf-folder"] / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_torch_program_asks_its_reader_to_unpickle_no_object(exports: dict[str, Path]) -> None:
    with zipfile.ZipFile(exports["torch-export"] / "model.pt2") as archive:
        configs = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("_config.json")]
    payloads = [payload for config in configs for payload in config["config"].values()]
    assert len(payloads) >= 10
    assert not any(payload["use_pickle"] for payload in payloads)


def test_card_and_record_say_how_images_were_resized_where_the_run_does(copied_run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((copied_run / "config.yaml").read_text())

    def exported(at: Path, name: str) -> tuple[str, dict[str, Any]]:
        assert main(["export", str(at), "--to", "safetensors", "--out", str(tmp_path / name)]) == 0
        return (tmp_path / name / "README.md").read_text(), json.loads((tmp_path / name / "export.json").read_text())

    for resizing, words in (("stretch", "stretched to 8x8"), ("crop", "was scaled to 8 and the middle cropped")):
        config |= {"data": "folder:pictures", "data_options": {**config["data_options"], "size": 8, "resizing": resizing}}
        (copied_run / "config.yaml").write_text(yaml.safe_dump(config))
        text, record = exported(copied_run, resizing)
        assert words in text
        assert record["resizing"] == resizing
    for at, name in ((copied_run / "weights" / "best.safetensors", "lone"), (tmp_path / "crop" / "model.safetensors", "again")):
        text, record = exported(at, name)
        # What was exported once has it in its own header.
        assert ("cropped" in text) == ("resizing" in record) == (name == "again")


def test_what_gives_other_logits_is_no_export_and_leaves_nothing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FORMATS["safetensors"]

    def off(subject: Subject, folder: Path) -> Any:
        predict = honest.load(subject, folder)
        return lambda images: predict(images) + torch.tensor([0.0, 0.0, 1e-3])

    monkeypatch.setitem(exporting.FORMATS, "safetensors", dataclasses.replace(honest, load=off))
    with pytest.raises(ModelError, match=r"differ by 0\.001.*use another format"):
        export_model(subject, "safetensors", tmp_path / "there", {})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_with_the_next_one_to_the_same_folder(subject: Subject, tmp_path: Path) -> None:
    dead, under_way, other = (tmp_path / f".{name}.partial" for name in ("there.a", "there.b", "elsewhere.c"))
    for left in (dead, under_way, other):
        left.mkdir()
        (left / "model.safetensors").touch()
    with claimed(under_way):
        export_model(subject, "safetensors", tmp_path / "there", {})
    assert {*tmp_path.iterdir()} == {tmp_path / "there", under_way, other}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_not_the_same(subject: Subject, wrong: float) -> None:
    with pytest.raises(ModelError, match="does not give the model's logits"):
        compare(subject, lambda images: torch.full((len(images), 3), wrong), 1e-3)
    with pytest.raises(ModelError, match=r"logits of \(12, 2\)"):
        compare(subject, lambda images: torch.zeros(len(images), 2), 1e-3)


def test_the_tolerance_is_a_share_of_the_largest_logit(subject: Subject) -> None:
    big = dataclasses.replace(subject, classifier=Scaled(subject.classifier))  # type: ignore[arg-type]
    largest = compare(big, big.classifier, 1e-3)["largest_logit"]
    assert largest > 10
    compare(big, lambda images: big.classifier(images) + 0.9e-3 * largest, 1e-3)
    with pytest.raises(ModelError):
        compare(big, lambda images: big.classifier(images) + 1.1e-3 * largest, 1e-3)


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * 1000


def test_nothing_that_exists_is_overwritten_and_folders_are_numbered(
    copied_run: Path, subject: Subject, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match=r"mine' exists already: choose another --out"):
        export_model(subject, "safetensors", tmp_path / "mine", {})
    for _ in range(2):
        assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert sorted(path.name for path in (copied_run / "exports").iterdir()) == ["safetensors-001", "safetensors-002"]
    assert "the card has no figures: `aalp evaluate" in capfd.readouterr().out


def test_a_format_needs_a_name_and_its_packages(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="unknown format 'onx': did you mean 'onnx'"):
        check_format("onx")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(AalpError, match=r'needs onnx, onnxscript, onnxruntime: pip install "aalp\[onnx\]"'):
        check_format("onnx")
    assert check_format("safetensors") is FORMATS["safetensors"]
    assert main(["export", "somewhere"]) == 2
    assert "to is missing: name a format with --to: safetensors, torch-export, onnx" in capfd.readouterr().err
