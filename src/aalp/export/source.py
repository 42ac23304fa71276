"""The Python source of a model, for formats whose readers build it from code."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch

from aalp.errors import ModelError
from aalp.export.subject import Subject
from aalp.models import preact_resnet, small_cnn
from aalp.models.catalog import BUILT_IN

SHAPED = '''

class Model(nn.Module):
    """Images (N, {channels}, {height}, {width}) in [0, 1] to logits (N, {classes}), the normalisation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.network = {network}
        self.register_buffer("mean", torch.zeros({statistics}))
        self.register_buffer("std", torch.ones({statistics}))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.mean.numel() > 0:
            images = (images - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return self.network(images)
'''

FROM_CATALOG = '''

class Model(Classifier):
    """Images (N, {channels}, {height}, {width}) in [0, 1] to logits (N, {classes}), the normalisation inside."""

    def __init__(self) -> None:
        built = build({model!r}, {classes}, {shape}, stored={architecture})
        super().__init__(built.network, [0.0] * {statistics} or None, [1.0] * {statistics} or None, built.head_name)
'''


def needs(subject: Subject) -> list[str]:
    """The packages that the source needs besides torch."""
    if subject.model in BUILT_IN:
        return []
    if subject.model.startswith("hf:"):
        return ["aalp", "transformers"]
    return ["timm"] if subject.model.startswith("timm:") else ["aalp"]


def source(subject: Subject) -> str:
    """A module with a class `Model` whose state dict is the classifier's.

    Built-in networks are written out in full, timm's are built by timm; any other (torchvision's, Hugging Face's, own code)
    is built by name through aalp, with the arguments and the head that it was trained with.
    """
    channels, height, width = subject.image_shape
    classes = len(subject.classes)
    numbers: dict[str, Any] = {
        "channels": channels,
        "height": height,
        "width": width,
        "classes": classes,
        "statistics": subject.classifier.mean.numel(),
        "model": subject.model,
        "shape": (channels, height, width),
        "architecture": _literal(subject.architecture),
    }
    doc = f'"""{_plain(subject.model)}, as aalp exported it. `Model().load_state_dict(...)` takes its weights."""'
    head = f"{doc}\n\nfrom __future__ import annotations\n\n"
    if subject.model in BUILT_IN:
        return f"{head}import torch\n{_definition(subject.model)}{SHAPED.format(network=_call(subject), **numbers)}"
    if subject.model.startswith("timm:"):
        return f"{head}import timm\nimport torch\nfrom torch import nn\n{SHAPED.format(network=_call(subject), **numbers)}"
    imports = "from aalp.models.catalog import build\nfrom aalp.models.classifier import Classifier\n"
    return f"{head}{imports}{FROM_CATALOG.format(**numbers)}"


def timm_arguments(subject: Subject) -> dict[str, Any]:
    """What timm.create_model needs besides the name, as the catalog called it."""
    import timm

    channels, height, width = subject.image_shape
    arguments: dict[str, Any] = {"in_chans": channels, **subject.architecture.get("arguments", {})}
    try:
        with torch.device("meta"):
            timm.create_model(_timm_name(subject), num_classes=2, img_size=(height, width), **arguments)
    except TypeError:  # convolutional models take any size and have no such argument
        return arguments
    return {**arguments, "img_size": [height, width]}


def _timm_name(subject: Subject) -> str:
    return subject.model.removeprefix("timm:")


def _call(subject: Subject) -> str:
    """The expression that builds the network."""
    channels, classes = subject.image_shape[0], len(subject.classes)
    if subject.model.startswith("timm:"):
        arguments = _literal(timm_arguments(subject))
        return f"timm.create_model({_timm_name(subject)!r}, pretrained=False, num_classes={classes}, **{arguments})"
    return {
        "small-cnn": f"SmallCNN({classes}, {subject.image_shape})",
        "thin-resnet": f"thin_resnet({classes}, {channels})",
        "preact-resnet18": f"preact_resnet18({classes}, {channels})",
        "wide-resnet28-10": f"wide_resnet({classes}, {channels}, 28, 10)",
        "wide-resnet34-10": f"wide_resnet({classes}, {channels}, 34, 10)",
    }[subject.model]


def _literal(value: Any) -> str:
    """A plain value as Python writes it: names and values may be a stranger's, and must not become code.

    Raises:
        ModelError: it is no such value, or has a number in it that is infinite or none.
    """
    text = repr(value)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ModelError(f"the model is built with {text[:200]}, which no Python code holds: use --to safetensors") from error
    return text


def _definition(model: str) -> str:
    """The source of a built-in network, free of imports from this package."""
    text = inspect.getsource(small_cnn if model == "small-cnn" else preact_resnet)
    lines = [line for line in text.splitlines()[1:] if not line.startswith(("from __future__", "from aalp"))]
    return "\n".join(lines).strip().replace("ModelError", "ValueError") + "\n"


def _plain(name: str) -> str:
    """A model's name as it may stand in a docstring."""
    return "".join(sign for sign in name if sign.isprintable() and sign not in '"\\')
