"""Every export is loaded as its own users load it, and says what the run says of real test images."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from aalp.cli import main
from aalp.commands.loading import load, load_model
from aalp.data.images import Decoding, Resizing, decode
from aalp.data.sources import load_source
from aalp.data.split import as_float
from aalp.errors import AalpError, ModelError, OptionError, RunError
from aalp.export import export as exporting
from aalp.export.card import card
from aalp.export.export import FORMATS, check_format, export_model
from aalp.export.robustbench import fraction, model_info
from aalp.export.subject import Subject, compare
from aalp.models.catalog import build
from aalp.store.checkpoint import read_metadata
from aalp.store.run import RunDirectory


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


@pytest.fixture
def subject(tiny_run: Path) -> Subject:
    loaded = load_model(tiny_run / "weights" / "best.safetensors")
    return Subject(loaded.classifier.to(memory_format=torch.contiguous_format), loaded.metadata, str(tiny_run))


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


EVALUATION: dict[str, Any] = {
    "weights": "run/weights/best.safetensors",
    "created": "2026-01-02T03:04:05+00:00",
    "command": "aalp evaluate run",
    "images": 10,
    "seed": 0,
    "clean": 0.9,
    "robust": 0.4,
    "intervals": {"clean": [0.6, 0.98], "robust": [0.17, 0.69]},
    "attacks": [{"name": "pgd-20", "accuracy": 0.5}, {"name": "autoattack", "accuracy": 0.4}],
    "threat": {"norm": "Linf", "eps": 0.1},
    "data": {"name": "npz:tiny.npz", "split": "test", "split_images": 18},
    "model": {"epoch": 2},
}
AUDIT: dict[str, Any] = {
    "verdict": "fail",
    "weights": "run/weights/best.safetensors",
    "created": "2026-01-02T03:04:05+00:00",
    "images": 10,
    "threat": {"norm": "Linf", "eps": 0.1},
    "data": {"name": "npz:tiny.npz", "split": "test"},
    "gates": [
        {"name": "black-box", "passed": False, "detail": "Square does better by 9 %"},
        {"name": "finite", "passed": True, "detail": "all finite"},
    ],
}


def test_the_card_tells_figures_verdict_and_limits(subject: Subject) -> None:
    checked = compare(subject, subject.classifier, 1e-5)
    bare = card(subject, "onnx", ["model.onnx"], checked)
    assert "robustness is unknown. `aalp evaluate" in bare
    assert "Not audited for masked gradients" in bare
    whole = card(dataclasses.replace(subject, evaluation=EVALUATION, audit=AUDIT), "onnx", ["model.onnx"], checked)
    assert "| clean | 90.0% | 60.0% to 98.0% |" in whole
    assert "| autoattack | 40.0% |  |" in whole
    assert "On 10 of 18 test images of npz:tiny.npz, Linf eps 0.1" in whole
    assert "FAILED: the robust accuracy above may be an artefact" in whole
    assert "failed: black-box (Square does better by 9 %)" in whole
    assert "finite" not in whole.partition("## Audit")[2].partition("## Limits")[0].replace("infinite", "")
    assert "AutoAttack has not run" not in whole
    weaker = {**EVALUATION, "attacks": EVALUATION["attacks"][:1], "threat": {"norm": "Linf", "eps": 0.05}}
    weak = card(dataclasses.replace(subject, evaluation=weaker), "onnx", ["model.onnx"], checked)
    assert "AutoAttack has not run: the figures are optimistic" in weak
    assert "of another threat than the training's" in weak
    assert "of another threat" not in whole


def test_figures_of_another_norm_are_called_so(subject: Subject) -> None:
    other = dataclasses.replace(subject, evaluation={**EVALUATION, "threat": {"norm": "L2", "eps": 0.1}})
    assert "of another threat than the training's" in card(other, "onnx", [], compare(subject, subject.classifier, 1e-5))


def test_the_card_of_a_file_tells_which_weights_it_is_where_its_name_does(copied_run: Path, tmp_path: Path) -> None:
    file = copied_run / "weights" / "last.safetensors"
    (tmp_path / "mine.safetensors").write_bytes(file.read_bytes())
    texts = []
    for at in (file, tmp_path / "mine.safetensors"):
        out = tmp_path / f"of {at.stem}"
        assert main(["export", str(at), "--to", "safetensors", "--out", str(out)]) == 0
        texts.append((out / "README.md").read_text())
    assert "(last)." in texts[0]
    assert f"`aalp evaluate {file} --weights last` measures it" in texts[0]
    assert "best" not in texts[0].partition("## Load it")[0] + texts[1]
    assert "--weights" not in texts[1]
    assert f"`aalp evaluate {tmp_path / 'mine.safetensors'}` measures it" in texts[1]


def test_the_card_of_a_model_that_nothing_attacked_claims_no_robustness(copied_run: Path) -> None:
    for attacks in ("clean", "fgsm"):
        assert main(["evaluate", str(copied_run), "--attacks", attacks, "--quiet"]) == 0
        assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert main(["evaluate", str(copied_run), "--attacks", "clean", "--quiet"]) == 0
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    first, *others = ((copied_run / "exports" / f"safetensors-{number:03d}" / "README.md").read_text() for number in (1, 2, 3))
    assert "Nothing was attacked: this model's robustness is unknown." in first
    assert "worst case" not in first
    assert all("| all of them (worst case) |" in text for text in others)


def test_the_card_speaks_of_the_data_that_the_model_was_trained_on(copied_run: Path, tiny_npz: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(tiny_npz))
    np.savez(tmp_path / "rotated.npz", **{n: np.rot90(a, axes=(1, 2)) if n.startswith("x_") else a for n, a in arrays.items()})
    other = ["--data", f"npz:{tmp_path / 'rotated.npz'}", "--quiet"]
    (tmp_path / "same.npz").write_bytes(tiny_npz.read_bytes())
    cards = []
    for words in (
        ["evaluate", *other, "--attacks", "fgsm,pgd-2"],
        ["audit", *other, "--images", "4"],
        ["evaluate", "--data", f"npz:{tmp_path / 'same.npz'}", "--attacks", "fgsm", "--quiet"],
    ):
        main([words[0], str(copied_run), *words[1:]])
        assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
        cards.append(sorted(copied_run.glob("exports/*/README.md"))[-1].read_text())
    elsewhere, audited, own = cards
    assert f"figures are of npz:{tmp_path / 'rotated.npz'}; the model was trained on npz:{tiny_npz}" in elsewhere
    assert f"images of npz:{tmp_path / 'rotated.npz'}" in audited.partition("## Audit")[2]
    assert "| pgd-2 |" not in own
    assert f"npz:{tmp_path / 'same.npz'}" in own
    assert "the model was trained on" not in own
    assert "Not audited" in own


def test_the_records_of_other_weights_are_not_the_cards(copied_run: Path) -> None:
    words = ["evaluate", str(copied_run), "--attacks", "fgsm", "--quiet"]
    assert main([*words, "--weights", "last"]) == 0
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert "robustness is unknown" in (copied_run / "exports" / "safetensors-001" / "README.md").read_text()
    assert main(words) == 0
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert "| fgsm |" in (copied_run / "exports" / "safetensors-002" / "README.md").read_text()
    (record,) = RunDirectory(copied_run).evaluations.glob("best-*.json")
    content = json.loads(record.read_text())
    content["model"]["epoch"] = 99  # of weights that were trained on since
    record.write_text(json.dumps(content))
    assert main(["export", str(copied_run), "--to", "safetensors"]) == 0
    assert "robustness is unknown" in (copied_run / "exports" / "safetensors-003" / "README.md").read_text()


def test_model_info_has_robustbench_s_fields_and_only_measured_figures(subject: Subject) -> None:
    cifar = {**subject.metadata, "data": {"name": "torchvision:CIFAR10"}, "threat": {"norm": "linf", "eps": 8 / 255}}
    weaker = {**EVALUATION, "data": {**EVALUATION["data"], "name": "torchvision:CIFAR10"}}
    evaluation = {**weaker, "threat": {"norm": "Linf", "eps": 8 / 255}}
    info = model_info(dataclasses.replace(subject, metadata=cifar, evaluation=evaluation, audit=AUDIT))
    fields = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported"
    assert list(info) == [*fields.split(), "autoattack_acc", "unreliable", "footnote"]
    assert (info["dataset"], info["eps"], info["architecture"]) == ("cifar10", "8/255", "SmallCNN")
    assert (info["clean_acc"], info["autoattack_acc"], info["unreliable"]) == ("90.00", "40.00", True)
    other_threat = model_info(dataclasses.replace(subject, metadata=cifar, evaluation=weaker))
    assert (other_threat["clean_acc"], other_threat["autoattack_acc"], other_threat["reported"]) == ("90.00", None, None)
    elsewhere = model_info(dataclasses.replace(subject, metadata=cifar, evaluation=EVALUATION))
    for bare in (model_info(subject), elsewhere):
        assert (bare["clean_acc"], bare["autoattack_acc"], bare["unreliable"]) == (None, None, False)


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.3, "0.3"), (0.5, "0.5"), (1 / 255, "1/255"), (0.2, "0.2")])
def test_eps_is_written_as_the_field_writes_it(eps: float, text: str) -> None:
    assert fraction(eps) == text
