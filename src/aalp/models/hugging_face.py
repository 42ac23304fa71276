"""Image classifiers in the Hugging Face format: a folder that `save_pretrained` made, or a name on their hub.

Nothing that a folder holds is run: weights are read from safetensors only, no code that comes with a model is
imported, and configurations that would make transformers fetch or import something else are refused.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aalp.errors import ModelError, first_line
from aalp.models.heads import find_head
from aalp.models.published import ImageShape, Normalisation, Published

REFUSED = ("auto_map", "quantization_config", "backbone", "backbone_config", "use_timm_backbone")
"""What in a configuration leads to other code, other files or other kinds of weights."""

DROPPED = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
"""Which kernels compute the same: transformers chooses by itself, and may not fetch any."""

MADE_UP = ("missing_keys", "mismatched_keys")
"""Under what transformers tells which weights it had to make up."""

EXTRA = 'transformers is not installed: pip install "aalp[hf]"'


class HuggingFaceNetwork(nn.Module):
    """A transformers image classifier as a network that maps images (N, channels, height, width) to logits (N, C).

    Position embeddings are interpolated for images of another size than the model's own, where it can do that.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        size = getattr(model.config, "image_size", None)
        self._size = None if size is None else tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def forward(self, images: Tensor) -> Tensor:
        other_size = self._interpolates and self._size is not None and tuple(images.shape[-2:]) != self._size
        outputs = self.model(pixel_values=images, **({"interpolate_pos_encoding": True} if other_size else {}))
        logits: Tensor = outputs.logits
        return logits

    @property
    def config(self) -> dict[str, Any]:
        """What the architecture can be built from again, as plain JSON."""
        content: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=False))  # type: ignore[operator,union-attr]
        return {key: value for key, value in content.items() if key not in DROPPED}


def pretrained(name: str, classes: Sequence[str] | None, num_classes: int, image_shape: ImageShape) -> Published:
    """A model with its weights, for data of this many classes: with another number it gets a fresh head.

    Args:
        name: a folder, or a name on the hub such as `google/vit-base-patch16-224`.

    Raises:
        ModelError: it cannot be loaded, is no image classifier, or its weights do not fit its configuration.
    """
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"there is no folder '{name}': name one that save_pretrained made, or a model on the hub")
    transformers = _transformers()
    place = str(Path(name).expanduser())
    with quiet_transformers():
        try:
            content = transformers.PreTrainedConfig.get_config_dict(place)[0]
            if "model_type" not in content:
                raise ValueError("its config.json is missing or names no model_type")
            own = _labels(content)
            config = _config(transformers, name, content)
            published = int(config.num_labels)
            if published != num_classes:
                _set_classes(config, classes, num_classes)
            _check_channels(name, config, image_shape)
            model, info = transformers.AutoModelForImageClassification.from_pretrained(
                place,
                config=config,
                use_safetensors=True,  # never a pickle
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # what is left over is looked at below
                output_loading_info=True,
            )
            normalisation = _normalisation(transformers, name, place)
        except ModelError:
            raise
        except Exception as error:  # missing files, no network, foreign formats: transformers raises many kinds
            raise ModelError(
                f"Hugging Face model '{name}' cannot be loaded: {first_line(error)}; name a folder with config.json and "
                "model.safetensors, or a model on the hub"
            ) from error
    network = HuggingFaceNetwork(model)
    head = find_head(network).removeprefix("model.")
    renewed = {str(key[0] if isinstance(key, tuple) else key) for kind in MADE_UP for key in info.get(kind, ())}
    foreign = sorted(key for key in renewed if key.rpartition(".")[0] != head)
    if foreign:
        raise ModelError(
            f"Hugging Face model '{name}' has no fitting weights for {foreign[0]}: its files do not fit its config"
        )
    return Published(network, normalisation, None if renewed else own, published if renewed else None)


def from_config(config: Mapping[str, Any], num_classes: int, image_shape: ImageShape) -> nn.Module:
    """The network of a configuration that a weights file holds, with fresh weights.

    Raises:
        ModelError: it is not one of an image classifier.
    """
    transformers = _transformers()
    with quiet_transformers():
        try:
            built = _config(transformers, "stored", config)
            if int(built.num_labels) != num_classes:
                raise ModelError(f"the stored configuration has {built.num_labels} classes and the weights {num_classes}")
            _check_channels("stored", built, image_shape)
            return HuggingFaceNetwork(transformers.AutoModelForImageClassification.from_config(built, trust_remote_code=False))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the stored Hugging Face configuration does not build: {first_line(error)}") from error


def _config(transformers: Any, name: str, content: Mapping[str, Any]) -> Any:
    content = dict(content)
    model_type = content.pop("model_type", None)
    if "aalp" in content:  # our own exports: of timm models, or with code, and neither has the run's threat and history
        raise ModelError(
            f"Hugging Face model '{name}' is an export of aalp: name its run, or what `aalp export RUN --to safetensors` wrote "
            "(to start a training, with --init-from)"
        )
    known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if model_type not in known or model_type == "timm_wrapper":
        hint = "name it as timm:NAME" if model_type == "timm_wrapper" else "an image classifier is needed"
        raise ModelError(f"Hugging Face model '{name}' is of type {model_type!r}: {hint}")
    for key in REFUSED:
        if content.get(key):
            raise ModelError(
                f"Hugging Face model '{name}' has {key} in its configuration, which is not loaded: use another one"
            )
    plain = {key: value for key, value in content.items() if key not in DROPPED}
    return transformers.AutoConfig.for_model(model_type, **plain)


def _set_classes(config: Any, classes: Sequence[str] | None, num_classes: int) -> None:
    names = list(classes) if classes is not None else [str(label) for label in range(num_classes)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: label for label, name in enumerate(names)}


def _labels(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the logits, unless they are the placeholders LABEL_0, LABEL_1, ..."""
    names = content.get("id2label")
    if not isinstance(names, Mapping) or not all(str(key).isdigit() for key in names):
        return None
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    return None if all(name == f"LABEL_{label}" for label, name in enumerate(ordered)) else ordered


def _check_channels(name: str, config: Any, image_shape: ImageShape) -> None:
    channels = getattr(config, "num_channels", image_shape[0])
    if channels != image_shape[0]:
        raise ModelError(
            f"Hugging Face model '{name}' takes images of {channels} channels and these have {image_shape[0]}: "
            "use another model, or give --data_options.channels"
        )


def _normalisation(transformers: Any, name: str, place: str) -> Normalisation | None:
    """Mean and deviation of images in [0, 1], as the model's image processor has them; None where there is none."""
    file = transformers.utils.cached_file(place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    if content.get("include_top"):  # EfficientNet's divides twice
        raise ModelError(f"the image processor of '{name}' does more than one normalisation: give --model_options.mean and std")
    mean, std = (content.get(key) for key in ("image_mean", "image_std"))
    if not content.get("do_normalize", True) or mean is None or std is None:
        mean, std = [0.0], [1.0]
    # Processors scale pixels of 0..255 by this factor, and some shift them by 1, before they normalise.
    scale = 255.0 * float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 255.0
    shift = 1.0 if content.get("rescale_offset") else 0.0
    return [(float(value) + shift) / scale for value in mean], [float(value) / scale for value in std]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(EXTRA) from error
    return transformers


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own lines and bars on stderr: what a user should know, we say."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
