"""Formats whose readers build the network again: with the arguments, the head and the configuration that it was built with."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aalp.cli import main
from aalp.commands.loading import load, ready
from aalp.errors import ModelError
from aalp.export.export import export_model
from aalp.export.source import source
from aalp.export.subject import Subject
from aalp.models.catalog import ModelOptions, architecture, build
from aalp.store.checkpoint import read_metadata, read_tensors, write_tensors

FACTORY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_shape, width):
        super().__init__()
        self.body = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], width)
        self.fc = nn.Linear(width, num_classes)
        self.auxiliary = nn.Linear(width, 7)

    def forward(self, images):
        return self.fc(self.body(images.flatten(1)).relu())

def net(num_classes, image_shape, width=4):
    return Net(num_classes, image_shape, width)
"""
MODEL = "own_exported_nets:net"
CASES: dict[str, ModelOptions] = {
    "timm:test_convnext": ModelOptions(arguments={"depths": [1, 1, 1, 1]}),
    "timm:test_vit": ModelOptions(arguments={"depth": 1, "patch_size": 8}),
    "torchvision:mobilenet_v3_small": ModelOptions(arguments={"reduced_tail": True}),
    MODEL: ModelOptions(arguments={"width": 6}, head="fc"),
    "hf:": ModelOptions(),
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_exported_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def subject_of(model: str, folder: Path) -> Subject:
    """A model of four classes with weights of its own; the folder of one in the Hugging Face format is gone already."""
    shape, theirs = (3, 32, 32), folder / "theirs"
    torch.manual_seed(0)
    if model == "hf:":
        transformers = pytest.importorskip("transformers")
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=4)
        transformers.ResNetForImageClassification(config).save_pretrained(theirs)
        model = f"hf:{theirs}"
    options = CASES.get(model, ModelOptions())
    classifier = build(model, 4, shape, options, ((0.4,) * 3, (0.2,) * 3)).eval().requires_grad_(False)
    shutil.rmtree(theirs, ignore_errors=True)
    metadata: dict[str, Any] = {"model": model, "classes": ["a", "b", "c", "d"], "image_shape": shape}
    return Subject(classifier, metadata | {"architecture": architecture(classifier, options)}, "run")


@pytest.mark.parametrize("name", ["safetensors", "hf-folder", "robustbench"])
@pytest.mark.parametrize("model", CASES)
def test_a_network_is_built_again_as_it_was(own: None, model: str, name: str, tmp_path: Path) -> None:
    subject = subject_of(model, tmp_path)
    export_model(subject, name, tmp_path / "out", {})  # compares the logits itself
    if name == "safetensors" and model != MODEL:
        images = torch.rand(2, 3, 32, 32)
        again = load(tmp_path / "out" / "model.safetensors")
        torch.testing.assert_close(again(images), subject.classifier(images), rtol=1e-4, atol=1e-5)


MERGING = """
from torch import nn
from torch.nn import functional as F

class Merging(nn.Linear):  # as layers of LoRA are: `eval` adds what is trained to the weight, once
    merged = False

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.trained = nn.Parameter(self.weight.detach().clone())

    def train(self, mode=True):
        if not mode and not self.merged:
            self.weight.data += self.trained.data
            self.merged = True
        return super().train(mode)

    def forward(self, features):
        return F.linear(features, self.weight if self.merged else self.weight + self.trained, self.bias)

def net(num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), Merging(image_shape[0] * image_shape[1] * image_shape[2], 5), nn.Linear(5, num_classes))
"""


def test_weights_that_eval_merges_are_written_unmerged(own: None, tmp_path: Path) -> None:
    (tmp_path / "merging_nets.py").write_text(MERGING)
    classifier = ready(build("merging_nets:net", 4, (1, 4, 4), ModelOptions()), (1, 4, 4))
    metadata = {"model": "merging_nets:net", "classes": list("abcd"), "image_shape": (1, 4, 4)}
    export_model(Subject(classifier, metadata, "run"), "safetensors", tmp_path / "out", {})  # compares the logits itself


def test_one_s_own_factory_gets_the_run_s_arguments_and_not_those_of_a_changed_weights_file(
    own: None, tmp_path: Path, train_words: list[str]
) -> None:
    words = ["--model", MODEL, "--model_options.arguments.width", "6", "--model_options.head", "fc"]
    run = tmp_path / "run"
    assert main([*train_words, "--training.epochs", "1", "--run", str(run), *words]) == 0
    file = run / "weights" / "best.safetensors"
    tensors, metadata = read_tensors(file)
    del metadata["checksum"]
    write_tensors(file, tensors, metadata | {"architecture": {"head": "fc", "arguments": {"width": 6, "evil": 1}}})
    for name in ("safetensors", "robustbench"):
        assert main(["export", str(run), "--to", name, "--trust-model-code", "--out", str(tmp_path / name)]) == 0
    assert "evil" not in (tmp_path / "robustbench" / "model.py").read_text()
    told = read_metadata(tmp_path / "safetensors" / "model.safetensors")["architecture"]
    assert told == {"head": "fc", "arguments": {"width": 6}}


EVIL = "drop_rate=(open('evil', 'w').write(''), 0.0)[1], drop_path_rate"


@pytest.mark.parametrize("name", ["hf-folder", "robustbench"])
def test_names_of_arguments_in_a_stranger_s_weights_never_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    subject = subject_of("timm:test_vit", tmp_path)
    # timm leaves out what is None, so that a model of any such name builds.
    metadata = {**subject.metadata, "kind": "weights", "architecture": {"arguments": {"depth": 1, "patch_size": 8, EVIL: None}}}
    write_tensors(tmp_path / "theirs.safetensors", subject.classifier.state_dict(), metadata)
    assert main(["export", "theirs.safetensors", "--to", name, "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "takes none of such a name: leave it out" in line
    assert not (tmp_path / "evil").exists()


def test_what_is_written_into_a_program_is_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model, arguments in (("timm:test_vit", {EVIL: None}), ("torchvision:resnet18", {EVIL: 1, "x": "', evil(), '"})):
        subject = subject_of(model, tmp_path)
        told = dataclasses.replace(subject, metadata={**subject.metadata, "architecture": {"arguments": arguments}})
        inside: dict[str, Any] = {}
        exec(source(told), inside)
        with contextlib.suppress(ModelError):
            inside["Model"]()
        assert not (tmp_path / "evil").exists()
        for value in (float("nan"), float("-inf"), Path("evil")):
            odd = {**subject.metadata, "architecture": {"arguments": {"drop_rate": None, "x": [value]}}}
            with pytest.raises(ModelError, match="no Python code holds: use --to safetensors"):
                source(dataclasses.replace(subject, metadata=odd))


def test_two_folders_of_one_name_are_loaded_in_one_process(tmp_path: Path, modules_of_transformers: None) -> None:
    """transformers knows a folder's code by the folder's own name, and ours are all called hf-folder-001."""
    transformers = pytest.importorskip("transformers")
    images, shapes, loaded = torch.rand(2, 3, 9, 9), ((4, "small-cnn"), (3, "small-cnn"), (3, "thin-resnet")), []
    for classes, model in shapes:
        folder = tmp_path / f"{classes}-{model}" / "hf-folder-001"
        classifier = build(model, classes, (3, 9, 9)).eval().requires_grad_(False)
        metadata = {"model": model, "classes": list("abcd"[:classes]), "image_shape": (3, 9, 9)}
        export_model(Subject(classifier, metadata, "run"), "hf-folder", folder, {})
        found = transformers.AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
        loaded.append((classifier, found))
    for number, (classifier, found) in enumerate(loaded):
        torch.testing.assert_close(found(images).logits, classifier(images))
        # Saved again, each takes its own code along.
        found.save_pretrained(tmp_path / str(number))
        auto = transformers.AutoModelForImageClassification
        again = auto.from_pretrained(tmp_path / str(number), trust_remote_code=True).eval()
        torch.testing.assert_close(again(images).logits, classifier(images))


def test_the_card_asks_to_build_one_s_own_network_and_no_other(own: None, tmp_path: Path) -> None:
    subject = subject_of("torchvision:mobilenet_v3_small", tmp_path)
    export_model(subject, "safetensors", tmp_path / "theirs", {})
    assert "build it yourself" not in (tmp_path / "theirs" / "README.md").read_text()
    export_model(subject_of(MODEL, tmp_path), "safetensors", tmp_path / "mine", {})
    assert "build it yourself" in (tmp_path / "mine" / "README.md").read_text()
