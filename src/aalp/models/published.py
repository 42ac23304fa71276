"""Models of timm and torchvision, fresh or with their published weights, and the normalisation they were published with."""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from aalp.errors import ModelError, unknown_name
from aalp.models.heads import replace_head

ImageShape = tuple[int, int, int]
Normalisation = tuple[Sequence[float], Sequence[float]]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """A network that was built by its name, and what whoever published it says of it.

    Attributes:
        network: maps normalised images to logits.
        normalisation: (mean, std) that it was published with, if any.
        classes: names of its logits, where it says them.
        fresh_head: how many classes its published head has, where that head had to be replaced.
    """

    network: nn.Module
    normalisation: Normalisation | None
    classes: tuple[str, ...] | None = None
    fresh_head: int | None = None


OURS_TO_SAY = {"num_classes", "in_chans", "img_size", "weights", "progress", "checkpoint_path", "cache_dir", "image_size"}
"""Arguments that follow from other options, or that would read files in ways of their own (pickles among them)."""


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are not the architecture's own, and names that no argument has.

    Raises:
        ModelError: naming the first of them.
    """
    for key in arguments:
        # A stranger's weights file may have code there, in the hope that it is written into a program.
        if not key.isidentifier() or keyword.iskeyword(key):
            raise ModelError(f"model_options arguments has {key!r}, and '{name}' takes none of such a name: leave it out")
        if key in OURS_TO_SAY or (key.startswith("pretrained") and not key.startswith("pretrained_window_size")):
            raise ModelError(
                f"model_options arguments has {key}: '{name}' takes the architecture's own arguments there; "
                "give weights with --model_options.pretrained or --init-from"
            )


def timm_model(
    name: str, num_classes: int, image_shape: ImageShape, pretrained: bool, arguments: Mapping[str, Any]
) -> Published:
    """A model of timm: `resnet18`, or with the tag of its weights `resnet18.a1_in1k`, built for the size of the images.

    Raises:
        ModelError: timm has no such model or weights, or does not build it for such images.
    """
    import timm  # takes a second to import: only when asked for

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(unknown_name("timm model", name, _near(name, timm.list_models())))
    tagged = timm.list_pretrained(f"{architecture}.*") if tag or pretrained else []
    if tag and name not in tagged:
        raise ModelError(unknown_name("timm model", name, _near(name, tagged or [architecture])))
    if pretrained and not tagged:
        raise ModelError(f"timm has no published weights of '{name}': leave out --model_options.pretrained")
    check_arguments(f"timm:{name}", arguments)
    wanted: dict[str, Any] = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": image_shape[0], **arguments}
    try:
        try:
            network = timm.create_model(name, img_size=image_shape[1:], **wanted)
        except TypeError:
            # Convolutional models take any size and have no such argument.
            network = timm.create_model(name, **wanted)
    except Exception as error:
        raise ModelError(_not_built(f"timm:{name}", image_shape, pretrained, error)) from error
    config: Any = network.pretrained_cfg  # what the architecture was published with
    published = int(config.get("num_classes") or num_classes)
    fresh = published if pretrained and published != num_classes else None
    return Published(network, (config["mean"], config["std"]), fresh_head=fresh)


def _not_built(model: str, image_shape: ImageShape, pretrained: bool, error: Exception) -> str:
    library, _, name = model.partition(":")
    weights = f" with its published weights (if they cannot be fetched from here, give a file of them and --model {model})"
    return f"{library} model '{name}'{weights * pretrained} does not build for images of {image_shape}: {error}"


def torchvision_model(
    name: str, num_classes: int, image_shape: ImageShape, pretrained: bool, arguments: Mapping[str, Any]
) -> Published:
    """A classifier of torchvision: `resnet18`, `vit_b_16`, `convnext_tiny`, ...; grey images meet one input channel.

    Raises:
        ModelError: torchvision has no such classifier, or does not build it for such images.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(unknown_name("torchvision model", name, _near(name, known)))
    check_arguments(f"torchvision:{name}", arguments)
    weights: Any = models.get_model_weights(name).DEFAULT
    categories = tuple(weights.meta["categories"])
    replaced = pretrained and len(categories) != num_classes
    try:
        network = _torchvision_network(models, name, num_classes, image_shape, weights if pretrained else None, dict(arguments))
        if replaced:
            network = replace_head(network, num_classes)
        if image_shape[0] != 3:
            _one_channel(network, image_shape[0])
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_not_built(f"torchvision:{name}", image_shape, pretrained, error)) from error
    transforms = weights.transforms()
    normalisation = transforms.mean, transforms.std
    if getattr(network, "transform_input", False) and "transform_input" not in arguments:
        # googlenet and inception_v3 have weights made for [-1, 1], and with them alone undo ImageNet's normalisation for that.
        # Built again without them they would not: so as a normalisation, which is stored with the weights.
        network.transform_input = False  # type: ignore[assignment]
        normalisation = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    classes = categories if pretrained and not replaced else None
    return Published(network, normalisation, classes, fresh_head=len(categories) if replaced else None)


def _torchvision_network(
    models: Any, name: str, num_classes: int, shape: ImageShape, weights: Any, arguments: dict[str, Any]
) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary outputs are for a training loop of their own, their slow initialisation warns of its end.
        arguments = {"init_weights": False, **arguments} if weights is None else arguments
    if name.startswith("vit_") or name == "maxvit_t":
        return _torchvision_transformer(models, name, num_classes, shape, weights, arguments)
    if weights is None:
        network = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    else:
        network = models.get_model(name, weights=weights, **arguments)
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for auxiliary in ("aux1", "aux2", "AuxLogits"):
            if hasattr(network, auxiliary):
                setattr(network, auxiliary, None)
    return network  # type: ignore[no-any-return]


def _torchvision_transformer(
    models: Any, name: str, num_classes: int, shape: ImageShape, weights: Any, arguments: dict[str, Any]
) -> nn.Module:
    """Transformers are built for one image size; position embeddings of weights for another one are interpolated."""
    if shape[1] != shape[2]:
        raise ModelError(f"'torchvision:{name}' takes square images and these are {shape[1]}x{shape[2]}: use timm's")
    size = {"input_size": shape[1:]} if name == "maxvit_t" else {"image_size": shape[1]}
    if weights is None:
        return models.get_model(name, weights=None, num_classes=num_classes, **size, **arguments)  # type: ignore[no-any-return]
    network: nn.Module = models.get_model(name, weights=None, **size, **arguments)
    state = weights.get_state_dict(progress=False, check_hash=True)
    if name.startswith("vit_"):
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(shape[1], network.patch_size, state)
    network.load_state_dict(state)
    return network


def _one_channel(network: nn.Module, channels: int) -> None:
    """Let the first convolution take grey images; its weights, summed, give for them what it gives for grey in colour."""
    if channels != 1:
        raise ModelError(f"torchvision models take images of 3 channels, or grey ones, and these have {channels}: use timm's")
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1
    if hasattr(network, "transform_input"):  # a change of normalisation between published weights, for colours
        network.transform_input = False  # type: ignore[assignment]


def _near(name: str, known: Sequence[str]) -> list[str]:
    """A few of a thousand names, so that the error stays readable."""
    return difflib.get_close_matches(name, known, n=5, cutoff=0.3) or list(known[:5])
