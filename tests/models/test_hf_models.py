"""Hugging Face image classifiers from a folder: weights, normalisation, class names, other sizes, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aalp.errors import ModelError
from aalp.method.contributions import contributions
from aalp.models.catalog import ModelOptions, architecture, build

transformers = pytest.importorskip("transformers")

NAMES = ("dog", "cat", "great white shark")


def small(kind: str, **changes: Any) -> Any:
    """A tiny model of a kind, with three named classes."""
    common = {"num_labels": 3, "id2label": dict(enumerate(NAMES)), "label2id": {name: at for at, name in enumerate(NAMES)}}
    stages = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    vit = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config, model = {
        "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
        "convnext": (transformers.ConvNextConfig, transformers.ConvNextForImageClassification),
        "resnet": (transformers.ResNetConfig, transformers.ResNetForImageClassification),
    }[kind]
    own = {"vit": {**vit, "intermediate_size": 32}, "convnext": stages, "resnet": {**stages, "embedding_size": 8}}[kind]
    torch.manual_seed(0)
    return model(config(**{**own, **common, **changes})).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of model, as save_pretrained makes it, with an image processor; not to be written to."""
    root = tmp_path_factory.mktemp("hf")
    for kind in ("vit", "convnext", "resnet"):
        small(kind).save_pretrained(root / kind)
        processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.25], "do_normalize": True, "do_rescale": True}
        (root / kind / "preprocessor_config.json").write_text(json.dumps(processor))
    return {kind: root / kind for kind in ("vit", "convnext", "resnet")}


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.2, 0.25]))
    return (images - mean) / std


@pytest.mark.parametrize("kind", ["vit", "convnext", "resnet"])
def test_a_saved_model_gives_its_own_logits_in_the_order_of_the_datas_classes(kind: str, saved: dict[str, Path]) -> None:
    told: list[str] = []
    size = 16 if kind == "vit" else 32
    classes = ("cat", "dog", "great_white_shark")
    classifier = build(f"hf:{saved[kind]}", 3, (3, size, size), classes=classes, tell=told.append).eval()
    images = torch.rand(2, 3, size, size)
    theirs = small(kind)(pixel_values=normalised(images)).logits
    torch.testing.assert_close(classifier(images), theirs[:, [1, 0, 2]], atol=1e-5, rtol=1e-5)
    assert told == [f"model 'hf:{saved[kind]}' has the data's classes in another order: its logits are put in the data's"]
    # Contributions at the head's input, which is what Guided Dropout drops.
    features, targets = classifier.features(images), torch.tensor([2, 0])
    parts = contributions(features, classifier.head_weight, targets).sum(1) + classifier.linear.bias[targets]
    torch.testing.assert_close(parts, classifier(images).gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_other_names_are_told_and_the_logits_left_as_they_are(saved: dict[str, Path]) -> None:
    told: list[str] = []
    classifier = build(f"hf:{saved['vit']}", 3, (3, 16, 16), classes=("a", "b", "c"), tell=told.append).eval()
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(classifier(images), small("vit")(pixel_values=normalised(images)).logits)
    assert told == [
        f"model 'hf:{saved['vit']}' names other classes than the data ('dog' where it has 'a'): logit k is taken as class k"
    ]


def test_another_number_of_classes_gets_a_fresh_head_and_another_size_interpolated_positions(saved: dict[str, Path]) -> None:
    told: list[str] = []
    classifier = build(f"hf:{saved['vit']}", 5, (3, 32, 24), tell=told.append).eval()
    assert classifier(torch.rand(2, 3, 32, 24)).shape == (2, 5)
    assert "has 3 classes and the data has 5 classes: it is replaced by a fresh one" in told[0]
    body = small("vit").vit.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in classifier.network.model.vit.state_dict().items())
    with pytest.raises(ModelError, match="has 3 classes and the data has 5: use data of its classes"):
        build(f"hf:{saved['vit']}", 5, (3, 16, 16), keep_head=True)


def test_a_model_is_built_again_from_what_its_weights_say_alone(saved: dict[str, Path]) -> None:
    first = build(f"hf:{saved['convnext']}", 3, (3, 32, 32)).eval()
    told = json.loads(json.dumps(architecture(first, ModelOptions())))
    again = build("hf:/gone", 3, (3, 32, 32), stored=told).eval()
    again.network.load_state_dict(first.network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.network(images), first.network(images))


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        (None, [], []),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "do_normalize": False}, [0], [1]),
        # (255 x / 127.5 - 1 - 0.5) / 0.25 = (x - 0.75) / 0.125.
        (
            {"image_mean": [0.5], "image_std": [0.25], "rescale_factor": 1 / 127.5, "rescale_offset": True},
            [0.75],
            [0.125],
        ),
        # Pixels of 0..255 as they are: (255 x - 51) / 25.5 = (x - 0.2) / 0.1.
        ({"image_mean": [51.0], "image_std": [25.5], "do_rescale": False}, [0.2], [0.1]),
    ],
)
def test_the_image_processors_normalisation_by_hand(processor: Any, mean: Any, std: Any, tmp_path: Path) -> None:
    small("resnet").save_pretrained(tmp_path)
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    classifier = build(f"hf:{tmp_path}", 3, (3, 32, 32))
    assert classifier.mean.tolist() == pytest.approx(mean)
    assert classifier.std.tolist() == pytest.approx(std)


def changed(folder: Path, **changes: Any) -> Path:
    small("vit").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "evil.Model"}}, "has auto_map in its configuration"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "has quantization_config"),
        (
            {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "evil.pt"}},
            "of type 'timm_wrapper': name it as timm",
        ),
        ({"model_type": "aalp", "aalp": {}}, "is an export of aalp: name its run, or what `aalp export RUN --to safetensors`"),
        ({"model_type": "timm_wrapper", "aalp": {}}, "is an export of aalp: name its run"),
        ({"model_type": "bert"}, "of type 'bert': an image classifier is needed"),
        ({"hidden_size": 32}, "no fitting weights for "),
        ({"num_channels": 1}, "takes images of 1 channels and these have 3"),
        ({"hidden_size": "many"}, "cannot be loaded: "),
    ],
)
def test_a_strangers_configuration_runs_and_fetches_nothing(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = changed(tmp_path, **changes)
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path('{tmp_path}/executed').touch()")
    with pytest.raises(ModelError, match=message):
        build(f"hf:{folder}", 3, (3, 16, 16))
    assert not (tmp_path / "executed").exists()


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = small("vit")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*safetensors"):
        build(f"hf:{tmp_path}", 3, (3, 16, 16))


def test_a_folder_that_is_missing_is_named() -> None:
    with pytest.raises(ModelError, match=r"there is no folder '\./missing'"):
        build("hf:./missing", 3, (3, 16, 16))
    with pytest.raises(ModelError, match="do not say how it is built"):
        build("hf:./missing", 3, (3, 16, 16), stored={})


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'transformers is not installed: pip install "aalp\[hf\]"'):
        build(f"hf:{tmp_path}", 3, (3, 16, 16))
