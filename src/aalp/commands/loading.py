"""From a run directory or a weights file to a Classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aalp.commands.config import check_one_run, quoted
from aalp.commands.yaml_file import read_yaml
from aalp.data.split import Split, as_float
from aalp.errors import AalpError, ModelError, OptionError, RunError
from aalp.method.pgd import in_evaluation_mode
from aalp.models.catalog import ModelOptions, build, is_own_code
from aalp.models.classifier import Classifier, laid_out, with_own_buffers
from aalp.store.checkpoint import read_tensors, state_for
from aalp.store.run import RunDirectory


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with what its file says of it (nothing, if another program wrote it)."""

    classifier: Classifier
    metadata: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What records tell of the model; None where its file does not say it."""
        told = {key: self.metadata.get(key) for key in ("model", "objective", "method", "epoch", "seed", "parameters")}
        # The usual trap with somebody else's weights, and it may come from the data.
        return told | {"mean": self.classifier.mean.tolist(), "std": self.classifier.std.tolist()}


def load(path: str | Path, weights: str = "best", network: nn.Module | None = None) -> Classifier:
    """The classifier of a run directory or of a weights file that aalp wrote, in evaluation mode on the CPU.

    Nothing in the file is executed. The weights are frozen: `.requires_grad_(True).train()` trains them on.

    Args:
        path: a run directory or a .safetensors file.
        weights: `best` or `last`, for a run directory.
        network: what the weights go into, as it was built for the training; needed for a model that was trained as
            `package.module:factory`, or that in an `aalp.Classifier`. It is used as it is, not copied.

    Raises:
        OptionError: weights are neither `best` nor `last`.
        RunError: the path is neither.
        ModelError: the weights name a model that cannot be built from a name alone, or do not fit the network.
    """
    if weights not in ("best", "last"):
        raise OptionError(f"weights is '{weights}': it has to be 'best' or 'last'")
    file = weights_file(Path(path), weights)
    if network is None:
        return load_model(file).classifier
    if type(network) is Classifier:  # as a factory may give it; its normalisation is in the file
        network = network.network
    tensors, metadata = read_tensors(file)
    classifier = with_own_buffers(Classifier(network, head=_architecture(file, metadata).get("head")), tensors)
    load_weights(classifier, tensors, str(file))
    return ready(classifier, metadata.get("image_shape", ()))


def load_model(path: Path, model: str | None = None, options: ModelOptions | None = None) -> LoadedModel:
    """The classifier of a weights file that aalp wrote.

    Args:
        model: the model's name, if not the one in the file.
        options: how it was built, if not as the file says; code of one's own takes its arguments from here alone.
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
    if model is None and is_own_code(name):
        raise ModelError(
            f"'{path}' was trained with your own model '{name}': say so with --model {name} to run its code "
            "(in Python: aalp.load(path, network=...))"
        )
    stored = _architecture(path, metadata)
    if options is None:
        if is_own_code(name) and stored.get("arguments"):
            raise ModelError(
                f"'{path}' asks to build '{name}' with the arguments {stored['arguments']}: if they are right, name the run "
                "directory in place of the file, or give them with --model_options.arguments"
            )
    else:
        options = dataclasses.replace(options, mean=None, std=None, pretrained=False)

    def make() -> Classifier:
        return with_own_buffers(build(name, num_classes, image_shape, options, stored=stored), tensors)

    if not is_own_code(name):
        _check_size(path, name, make, tensors)
    classifier = make()
    load_weights(classifier, tensors, str(path))
    return LoadedModel(ready(classifier, image_shape), metadata)


def _architecture(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the file says on how its model is built.

    Raises:
        RunError: it is not what `architecture` writes.
    """
    stored = metadata.get("architecture", {})
    kinds = {"head": str, "arguments": dict, "config": dict}
    if not isinstance(stored, dict) or not all(isinstance(value, kinds.get(key, ())) for key, value in stored.items()):
        raise RunError(f"'{path}' does not say how its model is built: {stored!r}; use another checkpoint")
    return dict(stored)


LARGEST = 4096
"""Channels, rows or columns that an image may have."""


def _check_size(path: Path, name: str, make: Callable[[], Classifier], tensors: dict[str, Tensor]) -> None:
    """Refuse a file whose few bytes ask for a model that fills the memory, before it is built.

    Raises:
        ModelError: the model that the file names is larger than the file's tensors.
    """
    try:
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in make().parameters())
    except ModelError:  # one that cannot be built without memory, or not at all: which, the next attempt says
        return
    held = sum(tensor.numel() for tensor in tensors.values())
    if wanted > held:
        raise ModelError(f"the weights in '{path}' do not fit the model: '{name}' has {wanted:,} and the file {held:,} numbers")


def ready(classifier: Classifier, image_shape: Sequence[int]) -> Classifier:
    """In evaluation mode, frozen, and in the layout in which it is fastest."""
    return laid_out(in_evaluation_mode(classifier).requires_grad_(False), image_shape)


def load_weights(classifier: Classifier, tensors: dict[str, Tensor], what: str) -> None:
    """Put tensors into a classifier, however the program that wrote them named them (see `own_names`).

    Raises:
        ModelError: names or shapes differ.
    """
    target, named = own_names(classifier, tensors)
    try:
        target.load_state_dict(state_for(target, named))
    except Exception as error:  # a network may read its tensors with code of its own, and raise anything
        reason = " ".join(str(error).split())
        raise ModelError(f"the weights in '{what}' do not fit the model: {reason[:300]}") from error


WRAPPERS = ("", "module.", "_orig_mod.", "model.", "network.", "model._orig_mod.")
"""What data parallelism, torch.compile and trainers put in front of every name."""


def own_names(classifier: Classifier, tensors: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The tensors under the names of the classifier or of its network, whichever they fit, and that module."""
    own = classifier.network.state_dict().keys()
    if own <= tensors.keys():  # a network may itself have a `module`, or a `mean` beside its `network`
        return classifier.network, tensors
    # Torch's AveragedModel counts what it has averaged beside the weights.
    tensors = {name.removeprefix("module."): value for name, value in tensors.items() if name != "n_averaged"}
    if "mean" in tensors and any(name.startswith("network.") for name in tensors):
        return classifier, tensors
    stripped = (
        {name.removeprefix(prefix): value for name, value in tensors.items()}
        for prefix in WRAPPERS
        if all(name.startswith(prefix) for name in tensors)
    )
    best = max(stripped, key=lambda named: len(own & named.keys()), default=tensors)
    return classifier.network, best


def weights_file(path: Path, which: str) -> Path:
    """The weights file that a run directory or a file path stands for.

    Raises:
        RunError: a run without weights, or no such path.
    """
    if not path.is_dir():
        if not path.is_file():
            raise RunError(f"'{path}' does not exist: name a run directory or a weights file")
        return path
    run = RunDirectory.open(path)
    check_one_run(path, read_yaml(run.config))
    file = run.weights(which)
    other = {"best": "last", "last": "best"}.get(which, which)
    if not file.is_file() and run.weights(other).is_file():
        raise RunError(f"'{path}' has no {which} weights and has {other} ones: give --weights {other}")
    if not file.is_file():
        again = f"`aalp train --resume {quoted(path)}`"
        raise RunError(f"'{path}' has no {which} weights yet: let its first epoch finish ({again})")
    return file


def verify_on(classifier: Classifier, split: Split, name: str, counts: Sequence[int] = (2,)) -> None:
    """Run a classifier on images of a split, so many at a time, before anything is written or attacked.

    Raises:
        ModelError: it does not run on such images, or its output is not logits.
        DataError: an image cannot be read, or has other channels than the normalisation.
    """
    images = as_float(split.read(torch.arange(min(max(counts), len(split)))))
    for count in counts:
        try:
            classifier.verify(images[:count])
        except AalpError:
            raise
        except Exception as error:  # the user's network runs here, and may raise anything
            which = f"images of {'x'.join(map(str, split.image_shape))} in a batch of {count}"
            raise ModelError(f"model '{name}' does not take {which}: {type(error).__name__}: {error}") from error
