"""Models that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import (
    COMPARE,
    EVALUATE_FOREIGN,
    ON_TINY,
    Case,
    empty_folder,
    evil_pickle,
    refused,
    small_weights,
    text_file,
    weights_in_twos,
)

BAD_MODELS: dict[str, Case] = {
    "a model that returns probabilities": (
        None,
        ON_TINY + "--model bad_factories:probabilities",
        ("not what the network's last Linear", "no softmax"),
    ),
    "a model that autograd does not see through": (
        None,
        ON_TINY + "--model bad_factories:blind",
        ("'bad_factories:blind' hides a step from autograd", "make it differentiable"),
    ),
    "a model with a state that is no tensor": (
        None,
        ON_TINY + "--model bad_factories:extra",
        ("'bad_factories:extra' keeps 'network._extra_state' beside its tensors", "make it a buffer"),
    ),
    "a model that returns probabilities to compare": (
        None,
        COMPARE + "--objectives at --model bad_factories:probabilities",
        ("not what the network's last Linear", "no softmax"),
    ),
    "a model of other classes": (
        None,
        ON_TINY + "--model bad_factories:eleven",
        ("'bad_factories:eleven' has 11 classes", "build it for 3, or name the layer", "--model_options.head NAME"),
    ),
    "a model without a Linear": (None, ON_TINY + "--model bad_factories:headless", ("torch.nn.Linear", "rewritten")),
    "a model for other images": (None, ON_TINY + "--model bad_factories:wrong_size", ("does not take images of", "1x8x8")),
    "a model that takes two images at a time to evaluate": (
        weights_in_twos,
        EVALUATE_FOREIGN + "--model bad_factories:in_twos",
        ("'bad_factories:in_twos' does not take images of 1x8x8 in a batch of 1: RuntimeError: shape '[2",),
    ),
    "a model that takes two images at a time to audit": (
        weights_in_twos,
        "audit foreign.safetensors --data npz:tiny.npz --eps 0.1 --model bad_factories:in_twos",
        ("'bad_factories:in_twos' does not take images of 1x8x8 in a batch of 1: RuntimeError: shape '[2",),
    ),
    "a factory that raises": (
        None,
        ON_TINY + "--model bad_factories:raises",
        ("'bad_factories:raises' does not build", "no such luck"),
    ),
    "a factory that returns text": (
        None,
        ON_TINY + "--model bad_factories:text",
        ("'bad_factories:text' gave a str", "torch.nn.Module"),
    ),
    "a factory that is missing": (
        None,
        ON_TINY + "--model bad_factories:nothing",
        ("nothing", "package.module:factory"),
    ),
    "a factory with arguments that it does not take": (
        None,
        ON_TINY + "--model bad_factories:net --model_options.arguments.depth 3",
        ("'bad_factories:net' does not build", "'depth'"),
    ),
    "arguments for a model that takes none": (
        None,
        ON_TINY + "--model_options.arguments.hidden 3",
        ("'small-cnn' takes no arguments",),
    ),
    "arguments that read files": (
        None,
        ON_TINY + "--model timm:test_vit --model_options.arguments.checkpoint_path evil.pt",
        ("has checkpoint_path", "--init-from"),
    ),
    "a head that is none": (
        None,
        ON_TINY + "--model_options.head convolutions.1",
        ("head 'convolutions.1' is a ReLU", "torch.nn.Linear"),
    ),
    "unknown torchvision model": (
        None,
        ON_TINY + "--model torchvision:resnet81",
        ("torchvision model 'resnet81'", "did you mean 'resnet"),
    ),
    "published weights of a model without any": (
        None,
        ON_TINY + "--model_options.pretrained true",
        ("'small-cnn' has no published weights", "--init-from"),
    ),
    "a missing Hugging Face model": (None, ON_TINY + "--model hf:./missing", ("no folder './missing'", "save_pretrained")),
    "a Hugging Face folder without a model": (
        empty_folder("empty"),
        ON_TINY + "--model hf:./empty",
        ("'./empty' cannot be loaded", "model.safetensors"),
    ),
    "missing start weights": (
        None,
        ON_TINY + "--init-from other",
        ("'other' does not exist", "run directory or a weights file"),
    ),
    "start weights of another model": (
        small_weights,
        ON_TINY + "--model thin-resnet --init-from foreign.safetensors",
        ("'foreign.safetensors' do not fit the model", "size mismatch"),
    ),
    "start weights that are a pickle": (
        evil_pickle,
        ON_TINY + "--init-from evil.pt",
        ("'evil.pt' is not a plain state dict", "state_dict() as safetensors"),
    ),
    "start weights to judge": (
        None,
        "evaluate done --init-from done --attacks fgsm",
        ("init_from is 'done'", "name weights to judge"),
    ),
    "a module that is missing": (None, ON_TINY + "--model no_module:net", ("no_module", "package.module:factory")),
    "a module that is not Python": (
        text_file("bad_factories.py", "def net("),
        ON_TINY + "--model bad_factories:net",
        ("bad_factories:net",),
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_bad_models_get_one_line_and_change_nothing(case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, folder, capfd)
