"""From a run directory or a weights file to a Classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aalp.data.split import Split, as_float
from aalp.errors import AalpError, ModelError, RunError
from aalp.models.catalog import BUILT_IN, build
from aalp.models.classifier import Classifier
from aalp.store.checkpoint import read_foreign_tensors, read_tensors
from aalp.store.run import RunDirectory


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with what its file says of it (nothing, if another program wrote it)."""

    classifier: Classifier
    metadata: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What records tell of the model; None where its file does not say it."""
        return {key: self.metadata.get(key) for key in ("model", "objective", "epoch", "seed", "parameters")}


def load(path: str | Path, weights: str = "best") -> Classifier:
    """The classifier of a run directory or of a weights file that aalp wrote, in evaluation mode on the CPU.

    Nothing in the file is executed. A model that was built by `package.module:factory` has to be built by the
    caller instead: `load_weights(classifier, path)`.

    Args:
        path: a run directory or a .safetensors file.
        weights: `best` or `last`, for a run directory.

    Raises:
        RunError: the path is neither.
        ModelError: the weights name a model that cannot be built from a name alone.
    """
    return load_model(weights_file(Path(path), weights)).classifier


def load_model(path: Path, model: str | None = None) -> LoadedModel:
    """The classifier of a weights file that aalp wrote.

    Args:
        model: the model's name, if not the one in the file.
    """
    tensors, metadata = read_tensors(path)
    try:
        name = model or str(metadata["model"])
        num_classes, shape = len(metadata["classes"]), metadata["image_shape"]
        image_shape = int(shape[0]), int(shape[1]), int(shape[2])
        if (
            not isinstance(metadata["classes"], list)
            or num_classes < 2
            or not all(1 <= size <= LARGEST for size in image_shape)
        ):
            raise ValueError(f"{num_classes} classes of images of {shape}")
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        raise RunError(f"'{path}' does not say which model it holds: name a weights file, not a training state") from error
    if model is None and not (name in BUILT_IN or name.startswith("timm:")):
        raise ModelError(f"'{path}' was trained with your own model '{name}': say so with --model {name} to run its code")
    if name in BUILT_IN:
        _check_size(path, name, num_classes, image_shape, tensors)
    # The file's own mean and std, below, take the place of these.
    channels = len(tensors.get("mean", ()))
    classifier = build(name, num_classes, image_shape, None, ((0.0,) * channels, (1.0,) * channels) if channels else None)
    load_weights(classifier, tensors, str(path))
    return LoadedModel(_ready(classifier), metadata)


LARGEST = 4096
"""Channels, rows or columns that an image may have."""


def _check_size(path: Path, name: str, num_classes: int, shape: tuple[int, int, int], tensors: dict[str, Tensor]) -> None:
    """Refuse a file whose few bytes ask for a model that fills the memory, before it is built.

    Raises:
        ModelError: the model that the file names is larger than the file's tensors.
    """
    with torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in BUILT_IN[name](num_classes, shape).parameters())
    held = sum(tensor.numel() for tensor in tensors.values())
    if wanted > held:
        raise ModelError(f"the weights in '{path}' do not fit the model: '{name}' has {wanted:,} and the file {held:,} numbers")


def load_foreign(path: Path, classifier: Classifier) -> LoadedModel:
    """Weights that another program wrote (safetensors, or a state dict of tensors only) in a classifier built by name."""
    load_weights(classifier, read_foreign_tensors(path), str(path))
    return LoadedModel(_ready(classifier), {})


def _ready(classifier: Classifier) -> Classifier:
    """In evaluation mode, frozen, and in the layout in which convolutions are fastest (the logits are the same)."""
    classifier.eval().requires_grad_(False)
    return classifier.to(memory_format=torch.channels_last)


def load_weights(classifier: Classifier, tensors: dict[str, Tensor], what: str) -> None:
    """Put tensors into a classifier, whether they are named as in it, as in its network, or behind `module.`.

    Raises:
        ModelError: names or shapes differ.
    """
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    target = classifier if any(name.startswith("network.") for name in tensors) else classifier.network
    try:
        target.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the weights in '{what}' do not fit the model: {reason[:300]}") from error


def weights_file(path: Path, which: str) -> Path:
    """The weights file that a run directory or a file path stands for.

    Raises:
        RunError: a run without weights, or no such path.
    """
    if not path.is_dir():
        if not path.is_file():
            raise RunError(f"'{path}' does not exist: name a run directory or a weights file")
        return path
    file = RunDirectory.open(path).weights(which)
    if not file.is_file():
        raise RunError(f"'{path}' has no {which} weights yet: let its first epoch finish (`aalp train --resume {path}`)")
    return file


def verify_on(classifier: Classifier, split: Split, name: str) -> None:
    """Run a classifier on two images of a split before anything is written or attacked.

    Raises:
        ModelError: it does not run on such images, or its output is not logits.
        DataError: an image cannot be read, or has other channels than the normalisation.
    """
    images = as_float(split.read(torch.arange(min(2, len(split)))))
    try:
        classifier.verify(images)
    except AalpError:
        raise
    except Exception as error:  # the user's network runs here, and may raise anything
        shape = "x".join(map(str, split.image_shape))
        raise ModelError(f"model '{name}' does not take images of {shape}: {type(error).__name__}: {error}") from error
