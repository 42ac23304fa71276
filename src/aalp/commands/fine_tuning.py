"""`--init-from`: start weights of a training from a run, from one of our weights files, or from another program's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from aalp.commands.loading import own_names, weights_file
from aalp.errors import ModelError
from aalp.models.catalog import order_classes
from aalp.models.classifier import Classifier
from aalp.models.published import Tell
from aalp.store.checkpoint import is_ours, read_foreign_tensors, read_tensors, state_for, under


def start_from(classifier: Classifier, path: Path, keep_normalisation: bool, classes: Sequence[str], tell: Tell) -> None:
    """Put start weights into a classifier; its own head stays where the file's is for other classes.

    Args:
        path: a run directory (its best weights), a safetensors file, or a state dict of tensors; nothing in it is executed.
            Of a training state of ours, such as the one before a training diverged, the weights themselves, not their average.
        keep_normalisation: take mean and deviation of a file of ours as well, which its weights were trained with.
        classes: of the data; the head of a file of ours that names the same ones is put in their order.
        tell: called with a line on what was taken and what was not.

    Raises:
        RunError: there is no such file, or it is none of these.
        ModelError: its weights do not fit the model, but for the head.
    """
    file = weights_file(path, "best")
    tensors, own_classes = _start_weights(file)
    target, named = own_names(classifier, tensors)
    if target is classifier:
        normalisation: dict[str, Tensor] = {name: named.pop(name) for name in ("mean", "std") if name in named}
        named = {name.removeprefix("network."): value for name, value in named.items()}
        if keep_normalisation:
            _take_normalisation(classifier, normalisation)
    fresh = _head_of_other_classes(classifier, named)
    _load(classifier.network, {name: value for name, value in named.items() if name not in fresh}, fresh, file)
    if fresh:
        before = next(iter(fresh.values())).shape[0]
        tell(
            f"start weights from {file}: its head has {before} classes and the data has {classifier.num_classes}, "
            "so a fresh head takes its place"
        )
        return
    tell(f"start weights from {file}, its head included")
    if own_classes is not None:
        order_classes(classifier, own_classes, classes, f"'{file}'", tell)


def _start_weights(file: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors of a file by name, and its classes where it is one of ours that tells them."""
    if not is_ours(file):
        return read_foreign_tensors(file), None
    tensors, metadata = read_tensors(file)
    if metadata.get("kind") == "state":
        return under("model.", tensors), None
    told = metadata.get("classes") if metadata.get("kind") == "weights" else None
    return tensors, [str(name) for name in told] if isinstance(told, list) else None


def _load(network: nn.Module, tensors: dict[str, Tensor], kept: Collection[str], file: Path) -> None:
    """Put tensors into a network that keeps its own under some names; each of its others has to be there, and no further one.

    Raises:
        ModelError: it is not so.
    """
    own = network.state_dict()
    whole = tensors | {name: own[name] for name in kept if name in own}
    try:
        missing, foreign = network.load_state_dict(state_for(network, whole), strict=False)
    except Exception as error:  # a network may read its tensors with code of its own, and raise anything
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"the weights in '{file}' do not fit the model: {reason}; name their own --model, or read images of the size and "
            "channels that they were made for (--data_options.size, --data_options.channels)"
        ) from error
    if missing or foreign:
        word, name = ("lack", missing[0]) if missing else ("have", foreign[0])
        raise ModelError(f"the weights in '{file}' do not fit the model: they {word} '{name}'; name their own --model")


def _head_of_other_classes(classifier: Classifier, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the head, where they are for another number of classes but for the same features."""
    prefix = f"{classifier.head_name}." if classifier.head_name else ""
    names = (f"{prefix}weight", f"{prefix}bias")
    weight, own = tensors.get(names[0]), classifier.linear.weight
    if weight is None or weight.shape == own.shape or weight.shape[1:] != own.shape[1:]:
        return {}
    return {name: tensors[name] for name in names if name in tensors}


def _take_normalisation(classifier: Classifier, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.dim() == 1 and value.numel() in (1, getattr(classifier, name).numel()) and torch.isfinite(value).all():
            setattr(classifier, name, value.to(getattr(classifier, name)))
