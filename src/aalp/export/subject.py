"""What is exported, and whether what was written gives the same logits."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aalp.errors import ModelError
from aalp.method.precision import full_precision
from aalp.models.classifier import Classifier

Predict = Callable[[Tensor], Tensor]
"""Images (N, channels, height, width) float32 in [0, 1] -> logits (N, C)."""

BATCHES = (1, 3, 8)
"""Sizes of the batches on which an export is compared: it has to take any."""


@dataclass(frozen=True)
class Subject:
    """A classifier on its way out.

    Attributes:
        classifier: in evaluation mode on the CPU.
        metadata: what its weights file says of it: model, classes, image_shape, threat, objective, seed, epoch, data; and
            what its run says of it: resizing.
        about: the run directory or weights file that it comes from, as the user named it.
        which: `best` or `last` of a run; None for a file of another name.
        evaluation, audit: the records of these weights, if there are any.
    """

    classifier: Classifier
    metadata: Mapping[str, Any]
    about: str
    which: str | None = "best"
    evaluation: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None

    @property
    def typed(self) -> str:
        """`about` as a shell takes it, with the weights of it that these are."""
        return shlex.quote(self.about) + (f" --weights {self.which}" if self.which else "")

    @property
    def model(self) -> str:
        return str(self.metadata["model"])

    @property
    def architecture(self) -> dict[str, Any]:
        """What `build` needs besides the name to build it again: head, arguments, a Hugging Face model's configuration."""
        return dict(self.metadata.get("architecture") or {})

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.metadata["classes"]]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.metadata["image_shape"]
        return int(channels), int(height), int(width)

    @property
    def measured_on_other_data(self) -> bool:
        """Whether the evaluation is of data that the model was not trained on; the same data may go by two names."""
        trained, measured = self.metadata.get("data") or {}, (self.evaluation or {}).get("data") or {}
        known = "name" in trained and "name" in measured
        same = trained.get("digest") and trained.get("digest") == measured.get("digest")
        return bool(known and trained["name"] != measured["name"] and not same)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel; 0 and 1 where the classifier has none."""
        channels = self.image_shape[0]
        mean, std = self.classifier.mean.tolist() or [0.0], self.classifier.std.tolist() or [1.0]
        return (mean * channels)[:channels], (std * channels)[:channels]

    @property
    def resizing(self) -> str | None:
        """How images of other sizes were brought to this one for the training, `stretch` or `crop`; None if none were."""
        found = self.metadata.get("resizing")
        return found if found in ("stretch", "crop") else None

    def travelling(self) -> dict[str, Any]:
        """What goes into every export's own metadata: enough to use the model without this package."""
        kept = ("model", "objective", "method", "seed", "epoch", "parameters", "data", "threat", "resizing")
        return {
            "classes": self.classes,
            "image_shape": list(self.image_shape),
            "input": "images (N, channels, height, width) float32 in [0, 1]; the normalisation is inside",
            "output": "logits (N, classes), in the order of classes",
            **{name: self.metadata[name] for name in kept if name in self.metadata},
        }


class Plain(nn.Module):
    """The classifier as tracers want it: images in, logits out, nothing checked on the way.

    Args:
        classifier: the one whose parameters it shares.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", classifier.mean.view(shape) if classifier.mean.numel() else torch.zeros(1))
        self.register_buffer("std", classifier.std.view(shape) if classifier.std.numel() else torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def probe_images(subject: Subject) -> Tensor:
    """Images (sum of `BATCHES`, channels, height, width) to compare on: from flat to noise, the same ones every time."""
    count = sum(BATCHES)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, *subject.image_shape, generator=generator)
    level = torch.rand(count, 1, 1, 1, generator=generator)
    return torch.lerp(level.expand_as(noise), noise, torch.linspace(0, 1, count).view(-1, 1, 1, 1)).contiguous()


def _batches(images: Tensor) -> Iterator[Tensor]:
    start = 0
    for size in BATCHES:
        yield images[start : start + size]
        start += size


@torch.no_grad()
def compare(subject: Subject, predict: Predict, tolerance: float) -> dict[str, Any]:
    """Run classifier and export on the same images, in batches of several sizes.

    Args:
        tolerance: largest difference of a logit, as a share of the largest logit (or of 1, if that is less).

    Returns:
        What was seen: the largest difference, and what was allowed.

    Raises:
        ModelError: the logits differ by more, or another class is predicted where the difference cannot excuse it.
    """
    batches = list(_batches(probe_images(subject)))
    with full_precision():
        wanted = torch.cat([subject.classifier(images) for images in batches])
        found = torch.cat([predict(images).float() for images in batches])
    if found.shape != wanted.shape:
        raise ModelError(f"the export gives logits of {tuple(found.shape)} for {tuple(wanted.shape)}: use another format")
    difference = float((found - wanted).abs().max())
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    top = wanted.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 2 * allowed
    same = found.argmax(1) == wanted.argmax(1)
    # Written so that a difference that is not a number fails, too.
    if not difference <= allowed or not bool(same[clear].all()):
        raise ModelError(
            f"the export does not give the model's logits: they differ by {difference:.3g}, more than {allowed:.3g}; "
            "use another format (does the network draw random numbers, or depend on the batch?)"
        )
    return {
        "images": len(wanted),
        "batch_sizes": list(BATCHES),
        "largest_logit": float(wanted.abs().max()),
        "largest_difference": difference,
        "allowed_difference": allowed,
        "same_predictions": int(same.sum()),
    }
