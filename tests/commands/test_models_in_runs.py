"""Models of every origin through the verbs: trained, loaded back, evaluated; and published ones judged by name alone."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aalp.cli import main
from aalp.commands.loading import load
from aalp.errors import ModelError, OptionError
from aalp.store.checkpoint import read_metadata, read_tensors, write_tensors

FACTORY = """
from torch import nn

from aalp import Classifier

def net(num_classes, image_shape, width=4, deep=False):
    inputs, hidden = image_shape[1] * image_shape[2], [nn.Linear(width, width), nn.ReLU()] * deep
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), *hidden, nn.Linear(width, num_classes))

class Versioned(nn.Sequential):
    _version = 3

    def _load_from_state_dict(self, state, prefix, about, *rest):
        if about.get("version") != 3:
            raise ValueError(f"version should be set to 3 instead of {about.get('version')}")
        super()._load_from_state_dict(state, prefix, about, *rest)

class Keeps(nn.Module):
    def __init__(self, inputs, num_classes):
        super().__init__()
        self.hidden, self.logits = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 4)), nn.Linear(4, num_classes)

    def forward(self, images):
        self.last = self.hidden(images)
        return self.logits(self.last)

def keeps(num_classes, image_shape):
    return Keeps(image_shape[1] * image_shape[2], num_classes)

def wrapped(num_classes, image_shape):
    return Classifier(net(num_classes, image_shape), mean=[0.25], std=[0.5])

class Views(nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
        self.maps, self.logits = nn.Conv2d(channels, 4, 3), nn.Linear(144, num_classes)

    def forward(self, images):
        maps = self.maps(images).relu()
        return self.logits(maps.view(maps.size(0), -1))

def views(num_classes, image_shape):
    return Views(num_classes, image_shape[0])

def versioned(num_classes, image_shape):
    return Versioned(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets_with_arguments.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


MODEL = "own_nets_with_arguments:net"


def trained(words: list[str], run: Path, *more: str) -> dict[str, Any]:
    assert main([*words, "--run", str(run), *more]) == 0
    return dict(read_metadata(run / "weights" / "last.safetensors")["architecture"])


def test_a_network_that_keeps_its_last_activations_is_trained_and_gone_on_with(own, tmp_path, train_words) -> None:
    run = tmp_path / "run"
    trained(train_words, run, "--model", "own_nets_with_arguments:keeps")
    for state in sorted((run / "states").glob("*"))[1:]:
        state.unlink()
    assert main(["train", "--resume", str(run), "--quiet=true", "--trust-model-code"]) == 0


def test_a_network_that_cannot_run_in_channels_last_is_trained_and_judged_contiguous(own, tmp_path, train_words) -> None:
    """`maps.view(maps.size(0), -1)`, as people write it, raises in channels last, which crops of colour images are in."""
    run, colour = tmp_path / "run", ["--data_options.channels", "3", "--training.augment", "crop+flip"]
    assert main([*train_words, *colour, "--model", "own_nets_with_arguments:views", "--run", str(run)]) == 0
    assert main(["evaluate", str(run), "--trust-model-code", "--attacks", "pgd-2,apgd-ce", "--quiet"]) == 0
    assert main(["audit", str(run), "--trust-model-code", "--images", "8", "--quiet"]) != 2  # of so few images undecided
    network = importlib.import_module("own_nets_with_arguments").views(3, (3, 8, 8))
    assert load(run, network=network)(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_a_factory_gets_its_arguments_and_so_does_every_later_verb(own, tmp_path, train_words, capfd) -> None:
    run = tmp_path / "run"
    arguments = ["--model_options.arguments.width", "6", "--model_options.arguments.deep", "true"]
    told = trained(train_words, run, "--model", MODEL, *arguments)
    assert told == {"arguments": {"width": 6, "deep": True}}
    assert read_tensors(run / "weights" / "last.safetensors")[0]["network.1.weight"].shape[0] == 6
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--quiet", "--trust-model-code"]) == 0
    # A lone file may be anybody's: what it would hand to one's own code has to be said.
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((run / "weights" / "last.safetensors").read_bytes())
    words = ["evaluate", str(lone), "--model", MODEL, "--data", train_words[2], "--attacks", "fgsm", "--quiet"]
    capfd.readouterr()
    assert main(words) == 2
    assert "asks to build" in capfd.readouterr().err
    assert main([*words, *arguments]) == 0


def test_a_network_that_asks_for_its_version_is_resumed_loaded_started_from_and_exported(
    own, tmp_path, train_words, tiny_arrays
) -> None:
    """As torchvision's MNASNet does: safetensors has no place for it."""
    run, model = tmp_path / "run", "own_nets_with_arguments:versioned"
    trained(train_words, run, "--model", model)
    assert main(["train", "--resume", str(run), "--trust-model-code", "--quiet"]) == 0
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--quiet", "--trust-model-code"]) == 0
    for format_ in ("safetensors", "robustbench"):
        assert main(["export", str(run), "--to", format_, "--trust-model-code"]) == 0
    np.savez(tmp_path / "five.npz", **tiny_arrays(classes=5))
    for data in (train_words[2], f"npz:{tmp_path / 'five.npz'}"):
        words = [word.replace(train_words[2], data) for word in train_words]
        more = ["--model", model, "--init-from", str(run), "--training.epochs", "1"]
        assert main([*words, *more, "--run", str(tmp_path / Path(data).stem)]) == 0


def test_a_named_head_is_found_again(own, tmp_path, train_words) -> None:
    run = tmp_path / "run"
    assert trained(train_words, run, "--model", MODEL, "--model_options.head", "3") == {"head": "3"}
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--quiet", "--trust-model-code"]) == 0


def test_a_factory_s_own_classifier_is_what_its_weights_load_into(own, tmp_path, train_words) -> None:
    run = tmp_path / "run"
    assert main([*train_words, "--model", "own_nets_with_arguments:wrapped", "--run", str(run)]) == 0
    built = importlib.import_module("own_nets_with_arguments").wrapped(3, (1, 8, 8))
    loaded = load(run, network=built)
    assert (loaded.network is built.network, loaded.mean.tolist(), loaded.verified) == (True, [0.25], False)


def test_own_models_load_into_a_network_that_was_built(own, tmp_path, train_words) -> None:
    run = tmp_path / "run"
    trained(train_words, run, "--model", MODEL, "--model_options.head", "3", "--model_options.arguments.width", "6")
    with pytest.raises(ModelError, match=r"aalp\.load\(path, network=\.\.\.\)"):
        load(run)
    network = importlib.import_module("own_nets_with_arguments").net(3, (1, 8, 8), width=6)
    classifier = load(run, "last", network)
    assert (classifier.head_name, classifier.training) == ("3", False)
    tensors = read_tensors(run / "weights" / "last.safetensors")[0]
    assert torch.equal(classifier.network[1].weight, tensors["network.1.weight"])
    assert torch.equal(classifier.mean, tensors["mean"])
    with pytest.raises(ModelError, match="do not fit"):
        load(run, network=importlib.import_module("own_nets_with_arguments").net(3, (1, 8, 8)))
    with pytest.raises(OptionError, match="'best' or 'last'"):
        load(run, "first")


def test_a_timm_model_with_arguments_loads_from_its_file_alone(tmp_path, train_words) -> None:
    run = tmp_path / "run"
    arguments = ["--model_options.arguments", '{"depth": 1, "patch_size": 4}']
    more = ["--model", "timm:test_vit", *arguments, "--training.epochs", "1", "--training.clip", "1"]
    assert trained(train_words, run, *more) == {"arguments": {"depth": 1, "patch_size": 4}}
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((run / "weights" / "last.safetensors").read_bytes())
    assert len(load(lone).network.blocks) == 1


def test_a_strangers_file_asks_for_no_pickle_and_for_no_more_memory_than_it_fills(tmp_path, tiny_npz, capfd) -> None:
    about = {"classes": ["0", "1", "2"], "image_shape": [3, 32, 32]}
    cases = {
        "timm:vit_base_patch16_224": ({}, "numbers"),
        "torchvision:vgg19": ({}, "numbers"),
        "timm:test_vit": ({"arguments": {"checkpoint_path": "evil.pt"}}, "has checkpoint_path"),
        "hf:anything": ({"config": {"model_type": "vit", "hidden_size": 10**9, "num_attention_heads": 1}}, ""),
        "hf:other": ({"config": {"model_type": "vit", "auto_map": {"AutoModel": "evil"}}}, "has auto_map"),
        "small-cnn": ({"arguments": [1]}, "does not say how its model is built"),
    }
    for number, (name, (architecture, needle)) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, {"w": torch.ones(1)}, {**about, "model": name, "architecture": architecture})
        capfd.readouterr()
        assert main(["evaluate", str(path), "--data", f"npz:{tiny_npz}", "--eps", "0.1", "--attacks", "fgsm"]) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert needle in err


def test_a_hugging_face_model_is_judged_by_its_folder_tuned_and_loaded_without_it(
    tmp_path, train_words, tiny_npz, capfd
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3, id2label={0: "2", 1: "0", 2: "1"}, num_channels=1
    )
    transformers.ResNetForImageClassification(config).eval().save_pretrained(tmp_path / "theirs")
    words = [f"hf:{tmp_path / 'theirs'}", "--data", f"npz:{tiny_npz}", "--eps", "0.1", "--quiet"]
    capfd.readouterr()
    assert main(["evaluate", *words, "--attacks", "fgsm,pgd-2", "--out", str(tmp_path / "evaluations")]) == 0
    assert "in another order: its logits are put in the data's" in capfd.readouterr().err
    (record,) = (tmp_path / "evaluations").glob("*.json")
    content = json.loads(record.read_text())
    assert content["weights"] == content["model"]["model"] == f"hf:{tmp_path / 'theirs'}"
    run = tmp_path / "run"
    told = trained(train_words, run, "--model", f"hf:{tmp_path / 'theirs'}", "--training.epochs", "1")
    assert told["config"]["model_type"] == "resnet"
    (tmp_path / "theirs").rename(tmp_path / "gone")
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--quiet"]) == 0
    assert load(run).num_classes == 3


def test_a_published_model_for_other_classes_is_not_judged(tiny_npz, capfd, monkeypatch) -> None:
    import timm

    published = timm.create_model("test_convnext", num_classes=1000).state_dict()
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: published)
    assert main(["evaluate", "timm:test_convnext", "--data", f"npz:{tiny_npz}", "--eps", "0.1"]) == 2
    assert "has 1000 classes and the data has 3: use data of its classes" in capfd.readouterr().err


def test_classes_of_different_sizes_are_shown_and_may_be_drawn_equally(tmp_path, tiny_arrays, capfd, train_words) -> None:
    arrays = tiny_arrays(train=90)
    keep = np.flatnonzero((arrays["y_train"] != 2) | (np.arange(90) < 24))
    np.savez(tmp_path / "uneven.npz", **{**arrays, "x_train": arrays["x_train"][keep], "y_train": arrays["y_train"][keep]})
    words = [word for word in train_words if not word.startswith("--quiet")]
    words = [word.replace(words[2], f"npz:{tmp_path / 'uneven.npz'}") for word in words]
    more = ["--data_options.validation", "0", "--training.epochs", "1"]
    assert main([*words, *more, "--run", str(tmp_path / "plain")]) == 0
    line = "3 classes of 8 ('2') to 30 ('0') training images"
    assert f"{line}; --training.balance classes would draw each equally often" in capfd.readouterr().err
    assert main([*words, *more, "--run", str(tmp_path / "even"), "--training.balance", "classes"]) == 0
    assert f"{line}, each drawn equally often" in capfd.readouterr().err
