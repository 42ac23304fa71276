"""The classifier of a run to be trained: built, started, and seen to be one that can be trained, attacked and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aalp.commands.fine_tuning import start_from
from aalp.commands.loading import verify_on
from aalp.data.sources import Source
from aalp.data.split import as_float, channel_statistics
from aalp.errors import ModelError
from aalp.evaluation.attacks import reaches_images
from aalp.models.catalog import ModelOptions, build
from aalp.models.classifier import Classifier, laid_out
from aalp.models.folding_in_place import check_folding
from aalp.models.published import Tell
from aalp.seeding import derive_seed, seed_global_generators


def build_classifier(
    options: Mapping[str, Any], source: Source, tell: Tell = lambda line: None, begun: bool = False
) -> Classifier:
    """The classifier, with start weights that depend on the seed and the options alone, seen to run on the training images.

    Args:
        tell: called with a line on what a user should know of the start weights.
        begun: whether a state will be loaded over it, so that start weights are not read.
    """
    wanted: ModelOptions = options["model_options"]
    if begun:
        wanted = dataclasses.replace(wanted, pretrained=False, init_from=None)
    seed_global_generators(derive_seed("start", options["seed"]))
    classifier = build(
        options["model"],
        len(source.classes),
        source.image_shape,
        wanted,
        channel_statistics(source.train),
        source.classes,
        tell=tell,
    )
    if wanted.init_from is not None:
        start_from(classifier, wanted.init_from, wanted.mean is None, source.classes, tell)
    classifier.contiguous = not wanted.channels_last
    if wanted.channels_last:
        laid_out(classifier, source.image_shape)
    verify_on(classifier, source.train, options["model"])
    _check_trainable(classifier, options["model"], source)
    return classifier


def _check_trainable(classifier: Classifier, name: str, source: Source) -> None:
    for key, value in classifier.state_dict().items():
        if not isinstance(value, Tensor):
            extra = f"model '{name}' keeps '{key}' beside its tensors (get_extra_state)"
            raise ModelError(f"{extra}, which checkpoints of tensors cannot hold: make it a buffer")
    images = as_float(source.train.read(torch.arange(min(2, len(source.train)))))
    check_folding(classifier, images)
    if not reaches_images(classifier, images):
        raise ModelError(
            f"model '{name}' hides a step from autograd (no_grad, detach, numpy), so that no attack "
            "finds a gradient: make it differentiable"
        )
