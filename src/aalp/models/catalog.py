"""Models by name: the built-in ones, `timm:NAME`, and `package.module:factory` of the user's own code."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from aalp.errors import ModelError, unknown_name
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import preact_resnet18, thin_resnet, wide_resnet
from aalp.models.small_cnn import SmallCNN

ImageShape = tuple[int, int, int]

BUILT_IN: dict[str, Callable[[int, ImageShape], nn.Module]] = {
    "small-cnn": SmallCNN,
    "thin-resnet": lambda classes, shape: thin_resnet(classes, shape[0]),
    "preact-resnet18": lambda classes, shape: preact_resnet18(classes, shape[0]),
    "wide-resnet28-10": lambda classes, shape: wide_resnet(classes, shape[0], 28, 10),
    "wide-resnet34-10": lambda classes, shape: wide_resnet(classes, shape[0], 34, 10),
}
"""Built-in models: (number of classes, image shape) -> network."""


def is_own_code(name: str) -> bool:
    """Whether building this model runs code that is neither ours nor timm's."""
    return name not in BUILT_IN and not name.startswith("timm:") and ":" in name


@dataclass(frozen=True)
class ModelOptions:
    """Options of the model besides its name."""

    mean: tuple[float, ...] | None = None
    """Per-channel mean that the classifier subtracts; by default that of the training images (timm: of its own data config)."""

    std: tuple[float, ...] | None = None
    """Per-channel deviation that the classifier divides by; by default as for mean."""

    pretrained: bool = False
    """Start a timm model from its published weights (downloads them)."""

    channels_last: bool = True
    """Lay image tensors out as channels last, which convolutions prefer."""


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    options: ModelOptions | None = None,
    default_normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Classifier:
    """A Classifier by name.

    Args:
        name: a key of `BUILT_IN`, `timm:NAME`, or `package.module:factory`, called as
            `factory(num_classes=..., image_shape=(channels, height, width))` and returning a module.
        num_classes: C of the data.
        image_shape: (channels, height, width) of the data.
        default_normalisation: (mean, std) for a model that neither brings its own nor has one in the options.

    Raises:
        ModelError: the name is unknown, the model does not build, or it has another number of classes.
    """
    options = options or ModelOptions()
    normalisation = default_normalisation
    if name in BUILT_IN:
        network = BUILT_IN[name](num_classes, image_shape)
    elif name.startswith("timm:"):
        network, own = _timm(name.removeprefix("timm:"), num_classes, image_shape, options.pretrained)
        # Published for three channels; a model made for grey images has none of its own.
        normalisation = own if len(own[0]) == image_shape[0] else default_normalisation
    elif ":" in name:
        network = _from_factory(name, num_classes, image_shape)
    else:
        raise ModelError(unknown_name("model", name, [*BUILT_IN, "timm:NAME", "package.module:factory"]))
    mean, std = normalisation or (None, None)
    if (options.mean is None) != (options.std is None):
        raise ModelError(f"mean is {options.mean} and std is {options.std}: give both, with one number for each channel")
    if isinstance(network, Classifier):
        if options.mean is not None:
            raise ModelError(f"model '{name}' is a Classifier with a normalisation of its own: leave out mean and std")
        classifier = network
    else:
        classifier = Classifier(network, options.mean or mean, options.std or std)
    if classifier.num_classes != num_classes:
        raise ModelError(
            f"model '{name}' has {classifier.num_classes} classes and the data has {num_classes}: build it for {num_classes}"
        )
    return classifier


def _timm(
    name: str, num_classes: int, image_shape: ImageShape, pretrained: bool
) -> tuple[nn.Module, tuple[Sequence[float], Sequence[float]]]:
    import timm  # takes a second to import: only when asked for

    if name not in timm.list_models():
        raise ModelError(unknown_name("timm model", name, _near(name, timm.list_models())))
    arguments: dict[str, Any] = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": image_shape[0]}
    try:
        try:
            network = timm.create_model(name, img_size=image_shape[1:], **arguments)
        except TypeError:
            # Convolutional models take any size and have no such argument.
            network = timm.create_model(name, **arguments)
    except Exception as error:
        raise ModelError(f"timm model '{name}' does not build for images of {image_shape}: {error}") from error
    config: Any = network.pretrained_cfg  # what the architecture was published with
    return network, (config["mean"], config["std"])


def _near(name: str, known: Sequence[str]) -> list[str]:
    """A few of timm's thousand names, so that the error stays readable."""
    return difflib.get_close_matches(name, known, n=5, cutoff=0.3) or list(known[:5])


def _from_factory(name: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        # An installed command does not look in the user's folder by itself; last, so that nothing is shadowed.
        sys.path.append(os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the user's module runs here, and may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"model '{name}': {reason}; name it as package.module:factory, importable from here") from error
    try:
        network = factory(num_classes=num_classes, image_shape=image_shape)
    except Exception as error:
        raise ModelError(f"model '{name}' does not build: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"model '{name}' gave a {type(network).__name__}: the factory has to return a torch.nn.Module")
    return network
