"""Models by name: the built-in ones, timm's, torchvision's, Hugging Face's, and the user's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from aalp.errors import ModelError, unknown_name
from aalp.models import hugging_face
from aalp.models.classifier import Classifier
from aalp.models.heads import class_order, reorder_head
from aalp.models.preact_resnet import preact_resnet18, thin_resnet, wide_resnet
from aalp.models.published import ImageShape, Normalisation, Published, Tell, timm_model, torchvision_model
from aalp.models.small_cnn import SmallCNN
from aalp.own_code import imported
from aalp.plain import Plain

BUILT_IN: dict[str, Callable[[int, ImageShape], nn.Module]] = {
    "small-cnn": SmallCNN,
    "thin-resnet": lambda classes, shape: thin_resnet(classes, shape[0]),
    "preact-resnet18": lambda classes, shape: preact_resnet18(classes, shape[0]),
    "wide-resnet28-10": lambda classes, shape: wide_resnet(classes, shape[0], 28, 10),
    "wide-resnet34-10": lambda classes, shape: wide_resnet(classes, shape[0], 34, 10),
}
"""Built-in models: (number of classes, image shape) -> network."""


COLLECTIONS: dict[str, Callable[..., Published]] = {"timm": timm_model, "torchvision": torchvision_model}
"""Other libraries' models, by the word before the colon."""

KNOWN = ("timm:NAME", "torchvision:NAME", "hf:FOLDER_OR_NAME", "package.module:factory")


def is_own_code(name: str) -> bool:
    """Whether building this model runs code that is neither ours nor of timm, torchvision or transformers."""
    return ":" in name and name.partition(":")[0] not in (*COLLECTIONS, "hf")


@dataclass(frozen=True)
class ModelOptions:
    """Options of the model besides its name."""

    mean: tuple[float, ...] | None = None
    """Per-channel mean that the classifier subtracts; by default that which a published model was made with, else that of \
the training images."""

    std: tuple[float, ...] | None = None
    """Per-channel deviation that the classifier divides by; by default as for mean."""

    pretrained: bool = False
    """Start a timm or torchvision model from its published weights (downloads them); hf models always have theirs."""

    init_from: Path | None = None
    """Start from these weights (also --init-from): a run directory, a safetensors file, or a state dict of tensors; a head \
for other classes is replaced."""

    head: str | None = None
    """Name of the layer that gives the logits, a Linear or a 1x1 convolution, such as classifier.3; by default the last one."""

    arguments: dict[str, Plain] = field(default_factory=dict)
    """Further arguments by name for the factory, or for timm's or torchvision's model: --model_options.arguments.width 2."""

    channels_last: bool = True
    """Lay image tensors out as channels last, which convolutions prefer, where the network runs so."""


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    options: ModelOptions | None = None,
    default_normalisation: Normalisation | None = None,
    classes: Sequence[str] | None = None,
    stored: Mapping[str, Any] | None = None,
    tell: Tell = lambda line: None,
    keep_head: bool = False,
) -> Classifier:
    """A Classifier by name.

    Args:
        name: a key of `BUILT_IN`; `timm:NAME` or `torchvision:NAME`; `hf:FOLDER_OR_NAME`, with its weights; or
            `package.module:factory`, called as `factory(num_classes=..., image_shape=(channels, height, width))` with
            the options' arguments and returning a module.
        num_classes: C of the data.
        image_shape: (channels, height, width) of the data.
        default_normalisation: (mean, std) for a model that neither brings its own nor has one in the options.
        classes: names of the data's classes; the logits of a published model that knows the same are put in their order.
        stored: what `architecture` told of a classifier that is built again, whose weights are loaded afterwards; head and
            arguments are its own where no options are given.
        tell: called with a line on what a user should know, such as a head that is replaced.
        keep_head: refuse a published model with another number of classes instead of replacing its head.

    Raises:
        ModelError: the name is unknown, the model does not build, or it has another number of classes.
    """
    told = stored or {}
    options = options or ModelOptions(head=told.get("head"), arguments=told.get("arguments", {}))
    if (options.mean is None) != (options.std is None):
        raise ModelError(f"mean is {options.mean} and std is {options.std}: give both, with one number for each channel")
    found = _network(name, num_classes, image_shape, options, classes, stored)
    if found.fresh_head is not None and keep_head:
        raise ModelError(
            f"model '{name}' has {found.fresh_head} classes and the data has {num_classes}: use data of its classes"
        )
    if found.fresh_head is not None and stored is None:
        before = f"{found.fresh_head} classes" if found.fresh_head != num_classes else "no fitting weights"
        tell(
            f"the published head of '{name}' has {before} and the data has {num_classes} classes: it is replaced by a fresh one"
        )
    classifier = _wrapped(name, found, image_shape[0], options, default_normalisation)
    if classifier.num_classes != num_classes:
        # The layer that was taken for the head, by default the last one defined, may not be it.
        head = "" if isinstance(found.network, Classifier) else ", or name the layer of its logits: --model_options.head NAME"
        raise ModelError(
            f"model '{name}' has {classifier.num_classes} classes and the data has {num_classes}: "
            f"build it for {num_classes}{head}"
        )
    if classes is not None and found.classes is not None:
        order_classes(classifier, found.classes, classes, f"model '{name}'", tell)
    return classifier


def _wrapped(
    name: str, found: Published, channels: int, options: ModelOptions, default_normalisation: Normalisation | None
) -> Classifier:
    """The network with a normalisation: that of the options, else its own, else the default; a Classifier has one inside."""
    if isinstance(found.network, Classifier):
        if options.mean is not None or options.head is not None:
            raise ModelError(
                f"model '{name}' is a Classifier with a normalisation of its own: leave out mean and std, and head"
            )
        return found.network
    own = found.normalisation
    # Published for three channels; a model made for grey images has none of its own.
    fits = own is not None and len(own[0]) in (1, channels)
    mean, std = (own if fits else default_normalisation) or (None, None)
    return Classifier(found.network, options.mean or mean, options.std or std, options.head)


def order_classes(classifier: Classifier, own: Sequence[str], wanted: Sequence[str], what: str, tell: Tell) -> None:
    """Put a classifier's logits in the order of the data's classes, where both name the same ones; tell what happens."""
    order = class_order(own, wanted)
    if order is None:
        pair = next(((one, other) for one, other in zip(own, wanted, strict=False) if one != other), ("", ""))
        tell(f"{what} names other classes than the data ('{pair[0]}' where it has '{pair[1]}'): logit k is taken as class k")
    elif order != sorted(order):
        reorder_head(classifier.linear, order)
        tell(f"{what} has the data's classes in another order: its logits are put in the data's")


def architecture(classifier: Classifier, options: ModelOptions) -> dict[str, Any]:
    """What `build` needs besides the name to build this classifier again, as plain JSON; `{}` where that is nothing."""
    network = classifier.network
    config = network.config if isinstance(network, hugging_face.HuggingFaceNetwork) else None
    told = {"head": options.head, "arguments": options.arguments, "config": config}
    return {key: value for key, value in told.items() if value}


def _network(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    options: ModelOptions,
    classes: Sequence[str] | None,
    stored: Mapping[str, Any] | None,
) -> Published:
    collection, _, rest = name.partition(":")
    if options.pretrained and collection not in (*COLLECTIONS, "hf"):
        raise ModelError(f"model '{name}' has no published weights: leave out pretrained, or start with --init-from")
    if options.arguments and (not rest or collection == "hf"):
        raise ModelError(f"model '{name}' takes no arguments: leave out --model_options.arguments")
    if name in BUILT_IN:
        return Published(BUILT_IN[name](num_classes, image_shape), None)
    if collection in COLLECTIONS and rest:
        return COLLECTIONS[collection](rest, num_classes, image_shape, options.pretrained and stored is None, options.arguments)
    if collection == "hf" and rest:
        if stored is not None:
            config = stored.get("config")
            if not isinstance(config, Mapping):
                raise ModelError(f"the weights of '{name}' do not say how it is built: train it anew")
            return Published(hugging_face.from_config(config, num_classes, image_shape), None)
        return hugging_face.pretrained(rest, classes, num_classes, image_shape)
    if is_own_code(name):
        return Published(_from_factory(name, num_classes, image_shape, options.arguments), None)
    raise ModelError(unknown_name("model", name, [*BUILT_IN, *KNOWN]))


def _from_factory(name: str, num_classes: int, image_shape: ImageShape, arguments: Mapping[str, Any]) -> nn.Module:
    factory = imported(name, "model", "package.module:factory", ModelError)
    try:
        network = factory(num_classes=num_classes, image_shape=image_shape, **arguments)
    except Exception as error:
        raise ModelError(f"model '{name}' does not build: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"model '{name}' gave a {type(network).__name__}: the factory has to return a torch.nn.Module")
    return network
