"""Models of timm and torchvision: any of them, their normalisation, their published weights, grey images, arguments."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision

from aalp.errors import ModelError
from aalp.method.aalp import AALP
from aalp.method.contributions import contributions
from aalp.method.guided_dropout import GuidedDropout
from aalp.models.catalog import ModelOptions, architecture, build
from aalp.models.published import check_arguments

TRANSFORMERS_AND_CONVNEXTS = {
    "timm:test_vit": (3, 48, 48),
    "timm:test_convnext": (3, 32, 32),
    "torchvision:swin_t": (3, 32, 32),
    "torchvision:vit_b_16": (3, 32, 32),
    "torchvision:convnext_tiny": (3, 32, 32),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's large networks with one thin block a stage: their classes, not their sizes, are what is tested."""
    torch.manual_seed(0)
    models = torchvision.models
    block = models.convnext.CNBlockConfig
    thin: dict[str, tuple[Any, dict[str, Any]]] = {
        "VisionTransformer": (
            models.vision_transformer,
            {"num_layers": 1, "hidden_dim": 24, "num_heads": 2, "mlp_dim": 32},
        ),
        "ConvNeXt": (models.convnext, {"block_setting": [block(8, 16, 1), block(16, None, 1)]}),
        "SwinTransformer": (
            models.swin_transformer,
            {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": [4, 4]},
        ),
    }
    for name, (module, sizes) in thin.items():
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *_, real=real, sizes=sizes, **arguments: real(**{**arguments, **sizes}), raising=True
        )


@pytest.mark.parametrize("name", TRANSFORMERS_AND_CONVNEXTS)
def test_contributions_and_guided_dropout_act_on_the_input_of_their_heads(name: str) -> None:
    shape = TRANSFORMERS_AND_CONVNEXTS[name]
    classifier = build(name, 5, shape).eval()
    images = torch.rand(3, *shape)
    features, logits = classifier.features(images), classifier(images)
    targets = torch.tensor([4, 0, 2])
    # Completeness: the contributions to a logit sum to it, but for the bias.
    parts = contributions(features, classifier.head_weight, targets)
    torch.testing.assert_close(parts.sum(1) + classifier.linear.bias[targets], logits.gather(1, targets[:, None])[:, 0])
    # Dropping one feature takes exactly its contribution off the logit.
    mask = torch.ones_like(features)
    mask[:, 3] = 0
    dropped = classifier.head(features, mask).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logits.gather(1, targets[:, None])[:, 0] - dropped, parts[:, 3], atol=1e-5, rtol=1e-4)
    # Half the features of least contribution, always dropped: the logit is what the others add up to.
    objective = AALP(dropout=GuidedDropout(fraction=0.5, probability=0.999999, ramp=0))
    drawn = objective.mask(classifier, features, targets, generator=torch.Generator().manual_seed(0))
    assert drawn is not None
    assert ((drawn == 0).sum(1) == classifier.num_features // 2).all()
    left = classifier.head(features, drawn).gather(1, targets[:, None])[:, 0]
    kept = parts.abs().argsort(1, descending=True)[:, : classifier.num_features - classifier.num_features // 2]
    torch.testing.assert_close(left, parts.gather(1, kept).sum(1) + classifier.linear.bias[targets], atol=1e-5, rtol=1e-4)
    loss = objective(classifier.train(), images, images, targets, generator=torch.Generator().manual_seed(0))
    loss.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in classifier.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("tag", ["", ".augreg_in21k"])
def test_timm_names_may_have_the_tag_of_their_weights_whose_normalisation_they_bring(tag: str) -> None:
    with torch.device("meta"):
        classifier = build(f"timm:vit_tiny_patch16_224{tag}", 5, (3, 32, 32))
    # The normalisation of timm's data config, which is not ImageNet's.
    config = timm.data.resolve_model_data_config(timm.create_model(f"vit_tiny_patch16_224{tag}"))
    assert config["mean"] == (0.5, 0.5, 0.5)
    assert [list(classifier.mean.shape), list(classifier.std.shape)] == [[3], [3]]
    real = build("timm:test_vit", 5, (3, 48, 48))
    assert tuple(real.mean.tolist()) == pytest.approx(
        timm.data.resolve_model_data_config(timm.create_model("test_vit"))["mean"]
    )


def test_published_weights_of_timm_are_taken_but_for_a_head_of_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.create_model("test_convnext", num_classes=1000)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: published.state_dict())
    told: list[str] = []
    classifier = build("timm:test_convnext", 5, (3, 32, 32), ModelOptions(pretrained=True), tell=told.append)
    ours = classifier.network.state_dict()
    assert torch.equal(ours["stem.0.weight"], published.state_dict()["stem.0.weight"])
    assert ours["head.fc.weight"].shape[0] == 5
    assert told == [
        "the published head of 'timm:test_convnext' has 1000 classes and the data has 5 classes: it is replaced by a fresh one"
    ]
    with pytest.raises(ModelError, match="has 1000 classes and the data has 5: use data of its classes"):
        build("timm:test_convnext", 5, (3, 32, 32), ModelOptions(pretrained=True), keep_head=True)


def test_published_weights_of_torchvision_bring_head_normalisation_and_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    published = torchvision.models.mobilenet_v3_small().state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    names = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.meta["categories"]
    images, options = torch.rand(2, 3, 32, 32), ModelOptions(pretrained=True)
    told: list[str] = []
    classifier = build("torchvision:mobilenet_v3_small", 1000, (3, 32, 32), options, tell=told.append).eval()
    assert classifier.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert classifier.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert told == []
    # Image folders come in alphabetical order; published logits do not.
    ordered = sorted(set(names))
    if len(ordered) == 1000:
        other = build("torchvision:mobilenet_v3_small", 1000, (3, 32, 32), options, classes=ordered).eval()
        torch.testing.assert_close(other(images), classifier(images)[:, [names.index(name) for name in ordered]])
    few = build("torchvision:mobilenet_v3_small", 7, (3, 32, 32), options, tell=told.append).eval()
    assert few(images).shape == (2, 7)
    assert torch.equal(few.network.features[0][0].weight, published["features.0.0.weight"])
    assert "has 1000 classes and the data has 7" in told[0]


def test_weights_for_colours_see_grey_images_as_grey_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.mobilenet_v3_small().state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    options = ModelOptions(pretrained=True)
    grey = build("torchvision:mobilenet_v3_small", 1000, (1, 32, 32), options).eval()
    colour = build("torchvision:mobilenet_v3_small", 1000, (3, 32, 32), options).eval()
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey.network(images), colour.network(images.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="3 channels, or grey ones, and these have 4"):
        build("torchvision:mobilenet_v3_small", 10, (4, 32, 32))


def test_auxiliary_outputs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = build("torchvision:googlenet", 5, (3, 64, 64)).train()
    assert classifier(torch.rand(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 75)])
def test_weights_that_take_another_normalisation_are_the_same_function_when_they_are_loaded_again(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    fresh = getattr(torchvision.models, name)(weights=None, init_weights=False, aux_logits=True)
    for layer in fresh.eval().modules():  # statistics of a batch, with which logits depend on the images
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.train().momentum = 1
    with torch.no_grad():
        fresh(torch.randn(4, 3, size, size))
    published = fresh.state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms, images = weights.transforms(), torch.rand(4, 3, size, size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transforms.mean, transforms.std))
    theirs = torchvision.models.get_model(name, weights=weights).eval()
    options = ModelOptions(pretrained=True)
    classifier = build(f"torchvision:{name}", 1000, (3, size, size), options).eval()
    with torch.no_grad():
        wanted = theirs((images - mean) / std)
        torch.testing.assert_close(classifier(images), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)
        again = build(f"torchvision:{name}", 1000, (3, size, size), stored=architecture(classifier, options)).eval()
        again.load_state_dict(classifier.state_dict())
        assert torch.equal(again(images), classifier(images))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torchvision:resnet81", {}, r"unknown torchvision model 'resnet81': did you mean 'resnet18'\?"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "unknown torchvision model"),
        ("timm:test_vit.nonsense", {}, r"unknown timm model 'test_vit\.nonsense': did you mean 'test_vit\.r160_in1k'\?"),
        ("timm:test_vit", {"arguments": {"checkpoint_path": "evil.pt"}}, "has checkpoint_path: .* --init-from"),
        ("timm:test_vit", {"arguments": {"pretrained_cfg_overlay": {"file": "evil.pt"}}}, "has pretrained_cfg_overlay"),
        ("timm:test_vit", {"arguments": {"a=print(1), b": None}}, "has 'a=print.1., b', and .* none of such a name"),
        ("torchvision:resnet18", {"arguments": {"lambda": 1}}, "has 'lambda', and .* none of such a name"),
        ("torchvision:resnet18", {"arguments": {"weights": "DEFAULT"}}, "has weights"),
        ("torchvision:resnet18", {"arguments": {"no_such": 1}}, "does not build .*no_such"),
        ("small-cnn", {"arguments": {"hidden": 3}}, "'small-cnn' takes no arguments"),
        ("small-cnn", {"pretrained": True}, "'small-cnn' has no published weights"),
        ("torchvision:vit_b_16", {}, "takes square images and these are 32x48"),
        ("timm:test_vit", {"head": "nowhere"}, "head 'nowhere' is no layer of that name"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, 5, (3, 32, 48), ModelOptions(**options))


def test_arguments_of_the_architecture_are_its_own() -> None:
    check_arguments("timm:swin", {"depths": [1, 1], "pretrained_window_size": 8})
    classifier = build("timm:test_vit", 5, (3, 32, 32), ModelOptions(arguments={"depth": 1}))
    assert len(classifier.network.blocks) == 1
    assert architecture(classifier, ModelOptions(arguments={"depth": 1})) == {"arguments": {"depth": 1}}
    assert architecture(classifier, ModelOptions()) == {}
