"""The views of a classifier that a search looks at: cheap ones to search by, the deployed one to count by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from aalp.method.losses import misclassified
from aalp.method.precision import multiplies_bfloat16
from aalp.models.classifier import Classifier
from aalp.models.inference_copy import folded, in_bfloat16

Logits = Callable[[Tensor], Tensor]
"""Images (N, ...) in [0, 1] -> float32 logits (N, C)."""

SearchPrecision = Literal["auto", "bf16", "float32"]

ROUGH = 0.1
"""Largest error of a bfloat16 logit, in units of the logits' spread, with which a model is still searched in bfloat16."""


@dataclass(frozen=True)
class Views:
    """One network, three ways.

    Attributes:
        judge: the classifier as deployed, float32; what it says counts.
        steady: float32 with BatchNorm folded; differs from the judge by rounding.
        rough: bfloat16; the same as `steady` where bfloat16 is not asked for, or is no use.
        is_rough: whether `rough` is bfloat16.
    """

    judge: Logits
    steady: Logits
    rough: Logits
    is_rough: bool

    @torch.no_grad()
    def wrong(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images (N,) the deployed network gets wrong."""
        return misclassified(self.judge(images), labels)


def search_precision(wanted: SearchPrecision, classifier: Classifier, images: Tensor) -> Literal["bf16", "float32"]:
    """In what this classifier is searched; `auto` is bfloat16 where the hardware multiplies it.

    Float32 too where bfloat16 does not carry the classifier's logits.

    Args:
        images: (N, ...) some that it takes, to try it on.
    """
    if wanted == "float32" or (wanted == "auto" and not multiplies_bfloat16(images.device)):
        return "float32"
    return "bf16" if views(classifier, images, "bf16").is_rough else "float32"


@torch.no_grad()
def views(classifier: Classifier, images: Tensor, precision: Literal["bf16", "float32"]) -> Views:
    """The views of a classifier.

    Args:
        images: (N, ...) some that it takes, to try them on.
        precision: of the rough view.
    """
    some = images[:32]
    network = folded(classifier.network, classifier.normalise(some)).to(memory_format=torch.channels_last)

    def steady(images: Tensor) -> Tensor:
        logits: Tensor = network(classifier.normalise(_laid_out(images)))
        return logits

    rough = _rough(classifier, some, network, steady(some)) if precision == "bf16" else None
    return Views(classifier, steady, rough or steady, rough is not None)


def _rough(classifier: Classifier, some: Tensor, network: nn.Module, reference: Tensor) -> Logits | None:
    """The bfloat16 view: the weights cast once, else autocast, else (far off, or not finite) none."""
    short = in_bfloat16(folded(classifier.network, classifier.normalise(some)).to(memory_format=torch.channels_last))

    def cast(images: Tensor) -> Tensor:
        logits: Tensor = short(classifier.normalise(_laid_out(images)).to(torch.bfloat16))
        return logits.float()

    def autocast(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = network(classifier.normalise(_laid_out(images)))
        return logits.float()

    spread = float((reference.amax() - reference.amin()).clamp_min(1e-12))
    for view in (cast, autocast):
        try:
            error = float((view(some) - reference).abs().amax())
        except (RuntimeError, TypeError):  # a layer that wants the number format it was written for
            continue
        if error <= ROUGH * spread:  # not so where it is not a number
            return view
    return None


def _laid_out(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
