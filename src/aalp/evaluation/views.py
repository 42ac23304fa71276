"""The views of a classifier that a search looks at: cheap ones to search by, the deployed one to count by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from aalp.method.losses import margin, misclassified
from aalp.method.precision import multiplies_bfloat16
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier, laid_out
from aalp.models.copies import copied
from aalp.models.inference_copy import Logits, alike, folded, in_bfloat16, unprinted

SearchPrecision = Literal["auto", "bf16", "float32"]
"""What may be asked for; `auto` is decided for a model and a threat, see `search_precision`."""

Searched = Literal["bf16", "float32"]
"""What a search is run in."""

ROUGH = 0.1
"""Largest error of a bfloat16 logit, in units of the logits' spread, with which a model is still searched in bfloat16."""

BLURRED = 0.05
"""Largest error of what a step of eps does to the margins in bfloat16, in units of that, both as root mean squares: beyond it
APGD leaves more images standing than in float32, since a small ball vanishes where the images themselves are rounded."""


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


def search_precision(wanted: SearchPrecision, classifier: Classifier, images: Tensor, threat: Threat) -> Searched:
    """In what this classifier is searched; `auto` is bfloat16 where the hardware multiplies it.

    Float32 too where bfloat16 does not carry the classifier's logits, or what the threat's steps do to them.

    Args:
        images: (N, ...) some that it takes, to try it on.
    """
    if wanted == "float32" or (wanted == "auto" and not multiplies_bfloat16(images.device)):
        return "float32"
    return "bf16" if views(classifier, images, threat).is_rough else "float32"


@torch.no_grad()
def views(classifier: Classifier, images: Tensor, roughly: Threat | None = None) -> Views:
    """The views of a classifier; one that no copy is `alike`, as of a subclass with a `forward` of its own, is searched itself.

    Args:
        images: (N, ...) some that it takes, to try them on.
        roughly: the threat that is searched in bfloat16 where it carries it; None for float32.
    """
    some = images[:32]
    cheap = _Copy(classifier, some)
    if not alike(cheap, classifier, some):
        return Views(classifier, classifier, classifier, False)
    rough = None if roughly is None else cheap.rough(some, roughly)
    return Views(classifier, cheap, rough or cheap, rough is not None)


class _Copy:
    """A frozen copy of a classifier's network behind its normalisation; called, it gives the logits of images.

    Args:
        some: (N, ...) images that it takes, to try it on.
    """

    def __init__(self, classifier: Classifier, some: Tensor) -> None:
        self.classifier = classifier
        # Only images of rows and columns have such a layout.
        last = some.dim() == 4 and not laid_out(copied(classifier, some).eval(), some.shape[1:]).contiguous
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.network = self._folded(some)

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self._laid_out(images))
        return logits.float()

    def rough(self, some: Tensor, threat: Threat) -> Logits | None:
        """The same in bfloat16: the weights cast once, else autocast, else (far off, not finite, or too blurred) none."""
        short, reference = in_bfloat16(self._folded(some)), self(some)

        def cast(images: Tensor) -> Tensor:
            logits: Tensor = short(self._laid_out(images).to(torch.bfloat16))
            return logits.float()

        def autocast(images: Tensor) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16):
                return self(images).float()

        spread = float((reference.amax() - reference.amin()).clamp_min(1e-12))
        for view in (cast, autocast):
            try:
                with unprinted():
                    error = float((view(some) - reference).abs().amax())
            except (RuntimeError, TypeError):  # a layer that wants the number format it was written for
                continue
            # Not so where one is not a number.
            if error <= ROUGH * spread and blur(view, self, some, threat) <= BLURRED:
                return view
        return None

    def _folded(self, some: Tensor) -> nn.Module:
        return folded(self.classifier.network, self.classifier.normalise(some)).to(memory_format=self.layout)

    def _laid_out(self, images: Tensor) -> Tensor:
        return self.classifier.normalise(images.contiguous(memory_format=self.layout))


@torch.no_grad()
def blur(rough: Logits, steady: Logits, images: Tensor, threat: Threat) -> float:
    """The error that the rough view makes of what a step of eps does to the margins of images (N, ...), in units of that.

    Infinite, or no number, where no step of eps does anything.
    """
    labels, leaf = steady(images).argmax(1), images.detach().clone().requires_grad_()
    with torch.enable_grad():
        margins = margin(steady(leaf), labels)
        if not margins.requires_grad:
            return math.inf
        (slope,) = torch.autograd.grad(margins.sum(), leaf, allow_unused=True, materialize_grads=True)
    there = threat.project(images + threat.eps * threat.steepest_step(slope), images)
    change, blurred = (margin(view(there), labels) - margin(view(images), labels) for view in (steady, rough))
    return float((blurred - change).norm() / change.norm())
