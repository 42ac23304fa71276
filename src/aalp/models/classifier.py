"""Classifier: the one thing that attacks and objectives know of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aalp.errors import DataError, ModelError
from aalp.method.batches import float_images
from aalp.method.pgd import evaluating
from aalp.models.heads import Head, find_head, head_layer


def check_classifier(model: object) -> None:
    """Refuse what is no classifier yet, or one that cannot be judged in float32.

    Raises:
        ModelError: naming what it is.
    """
    if not isinstance(model, Classifier):
        # As data parallelism and torch.compile wrap it.
        wrapped = isinstance(model, nn.Module) and any(isinstance(module, Classifier) for module in model.modules())
        remedy = "give the aalp.Classifier inside it" if wrapped else "wrap the network, aalp.Classifier(network)"
        raise ModelError(f"the classifier is a {type(model).__name__}: {remedy}")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ModelError(
                f"the classifier's '{name}' is {parameter.dtype}: robustness is judged in float32, give "
                "copy.deepcopy(classifier).float()"
            )


class Classifier(nn.Module):
    """Any network whose logits end in a `torch.nn.Linear`, with normalisation inside.

    A 1x1 convolution on pooled features is the same, and serves as well. In front of that layer anything may come:
    its input is what contributions are taken of and Guided Dropout acts on.

    The images that go in are in [0, 1], so eps means the same for every model. The network is
    used as it is, not copied: its parameters are the classifier's.

    Args:
        network: maps normalised images (N, ...) to logits (N, C).
        mean: per-channel mean to subtract; none by default.
        std: per-channel deviation to divide by; none by default.
        head: name of the final Linear in `network.named_modules()`; by default the last one defined, or where there is
            none the last 1x1 convolution.

    Attributes:
        num_classes: C.
        num_features: D, the width of the head's input.
        verified: whether a first batch has been seen, and its logits were the head's.
        contiguous: whether images have to be contiguous: convolutions follow their layout, and some networks only run in that.

    Raises:
        ModelError: at once, if there is no such Linear or mean and std do not fit together; at the
            first batch, if the network's output is not what that Linear gave.
        DataError: at any batch, if the images are no floats, or have other channels than the mean.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ModelError(f"the network is a {type(network).__name__}: give a torch.nn.Module")
        self.network = network
        self.head_name: str = head if head is not None else find_head(network)
        head_layer(network, self.head_name)
        mean_values, std_values = _normalisation(mean, std)
        self.register_buffer("mean", mean_values)
        self.register_buffer("std", std_values)
        self.verified = False
        self.contiguous = False

    @property
    def linear(self) -> Head:
        """The final layer."""
        return head_layer(self.network, self.head_name)

    @property
    def num_classes(self) -> int:
        return self.linear.weight.shape[0]

    @property
    def num_features(self) -> int:
        return self.linear.weight.shape[1]

    @property
    def head_weight(self) -> Tensor:
        """The head's weight (C, D)."""
        return self.linear.weight.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, ...) in [0, 1]."""
        if not self.verified:
            self.verify(images)
        logits: Tensor = self.network(self.normalise(images))
        if not isinstance(logits, Tensor):  # the first batch was looked at in evaluation mode
            raise ModelError(_no_tensor(logits, " in training mode (build it without auxiliary logits)"))
        # Some networks turn what their head gave into float64: nothing is lost on the way back, and attacks stay in float32.
        return logits.to(self.head_weight.dtype) if logits.dtype == torch.float64 else logits

    def features(self, images: Tensor) -> Tensor:
        """The input h (N, D) of the head for images (N, ...) in [0, 1]: logits are `head(features(images))`."""
        if not self.verified:
            self.verify(images)
        return self._run(images)[0]

    def head(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (N, C) of features (N, D), each multiplied by its factor in `mask` (N, D) if one is given."""
        kept = features if mask is None else features * mask.to(features.dtype)
        layer = self.linear
        logits: Tensor = layer(kept[:, :, None, None]).flatten(1) if isinstance(layer, nn.Conv2d) else layer(kept)
        return logits

    def normalise(self, images: Tensor) -> Tensor:
        """(images - mean) / std, per channel; always a tensor of its own, since a network may change its input in place."""
        images = float_images(images)  # 0..255 would pass as well, and mean something else
        if images.dtype == torch.float64 != self.head_weight.dtype:  # as NumPy's arrays come; no layer says what to do
            raise DataError(f"images are torch.float64 and the classifier is {self.head_weight.dtype}: give images.float()")
        if self.mean.numel() == 0:
            # Else a network that begins with `x.sub_(0.5)` or a ReLU in place would change the images themselves.
            return images.clone()
        if images.dim() < 2 or self.mean.numel() not in (1, images.shape[1]):
            raise DataError(
                f"images of shape {tuple(images.shape)} do not have the {self.mean.numel()} channels of the "
                "classifier's mean and std: pass images as (N, channels, height, width)"
            )
        shape = (1, -1, *[1] * (images.dim() - 2))
        return (images - self.mean.view(shape)) / self.std.view(shape)

    @torch.no_grad()
    def verify(self, images: Tensor) -> None:
        """Check on a batch that the logits are what the head gives; called by itself on the first batch.

        Raises:
            ModelError: the network's output is something else, such as probabilities.
        """
        # The probe must not move BatchNorm statistics nor draw dropout. And no `eval()`: a layer may have a `train` of its own
        # that does more than set the mode, as a LoRA layer merges its weights there, and would be left as that made it.
        with evaluating(self):
            self.checked_features(images[:2])
        self.verified = len(images) > 0  # of no images any output is the head's

    def checked_features(self, images: Tensor) -> Tensor:
        """The head's input (N, D), every image's looked at as `verify` does those of two.

        A network that sends images different ways may give the first two what its head says, and others something else.

        Raises:
            ModelError: as `verify`.
        """
        features, from_head, output = self._run(images)
        name = f"the network's last {type(self.linear).__name__} '{self.head_name}'"
        if not isinstance(output, Tensor):
            raise ModelError(_no_tensor(output))
        if output.shape != from_head.shape or not _equal(output, from_head):
            raise ModelError(
                f"the network's output is not what {name} gives{_difference(output, from_head)}: it has to return that layer's "
                "logits as they are (no softmax or other step after it); name another final layer with head=... "
                "(--model_options.head), or, to judge an ensemble or what does more to its logits, end in an identity Linear"
            )
        if features.dim() != 2:
            raise ModelError(f"{name} takes features of shape {tuple(features.shape)}: one row (N, D) an image is needed")
        if output.shape[1] < 2:
            raise ModelError(f"{name} gives one logit an image: give each class its own, two for two classes")
        if features.dtype != self.head_weight.dtype and not torch.is_autocast_enabled(features.device.type):
            raise ModelError(
                f"{name} is {self.head_weight.dtype} and takes {features.dtype}: the network casts in its forward (autocast), "
                "and robustness is judged in float32: take that out of it (training has --training.precision bf16-mixed)"
            )
        if not _close(F.linear(features, self.head_weight, self.linear.bias), output):
            raise ModelError(f"{name} gives something else than its weight times its input plus its bias: end in a plain one")
        return features

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor, object]:
        """The network's pass, seen at its head: the head's input and output, and the network's output."""
        seen: list[tuple[Tensor, Tensor]] = []

        def look(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # A copy, since a step in place after the head would change what it gave as well.
            seen.append((_row(inputs[0]), _row(output.detach()).clone()))

        handle = self.linear.register_forward_hook(look)
        try:
            with _hooks_seen(self.network):
                output = self.network(self.normalise(images))
        finally:
            handle.remove()
        if not seen:
            raise ModelError(
                f"the network's last {type(self.linear).__name__} '{self.head_name}' does not run in its forward: "
                "name one that does with head=... (--model_options.head)"
            )
        return *seen[-1], output


def _hooks_seen(network: nn.Module) -> AbstractContextManager[object]:
    """A compiled network, or one with a compiled part, as it is written inside the block: compiled code runs past hooks."""
    if torch.compiler.is_compiling():  # all of the classifier is, and its hooks with it
        return nullcontext()
    compiled = any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in network.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def laid_out(classifier: Classifier, image_shape: Sequence[int]) -> Classifier:
    """The classifier itself in channels last, the layout in which convolutions are fastest (the logits are the same).

    One that does not run so, as `maps.view(len(maps), -1)` does not, is left contiguous; one that does not run at all, too.
    """
    verified = classifier.verified
    classifier.to(memory_format=torch.channels_last)
    try:
        classifier.verify(torch.zeros(2, *image_shape, device=classifier.mean.device))
    except Exception:  # the user's network runs here, and may raise anything
        classifier.to(memory_format=torch.contiguous_format)
        classifier.contiguous = True
    classifier.verified = verified  # whoever sees the first real batch looks at it, too
    return classifier


def with_own_buffers(classifier: Classifier, tensors: Mapping[str, Tensor]) -> Classifier:
    """The classifier with room for the normalisation of the file, of however many channels."""
    for buffer in ("mean", "std"):
        value = tensors.get(buffer)
        if value is not None and value.dim() == 1:
            setattr(classifier, buffer, torch.empty_like(value))
    return classifier


def _equal(one: Tensor, other: Tensor) -> bool:
    """Equal everywhere, where numbers are not finite too: whoever looks at the loss has a better word on those."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to the rounding of any number format, where numbers are finite."""
    gap = (one - other).abs().nan_to_num(0, 0).amax(1)
    other = other.nan_to_num(0, 0, 0)
    return bool((gap <= 0.05 * (other.amax(1) - other.amin(1)) + 0.01 * other.abs().amax(1) + 1e-6).all())


def _difference(output: Tensor, from_head: Tensor) -> str:
    """In what two outputs differ besides their values, if in anything."""
    for given, wanted in ((tuple(output.shape), tuple(from_head.shape)), (output.dtype, from_head.dtype)):
        if given != wanted:
            return f" ({given}, not {wanted})"
    return ""


def _no_tensor(output: object, when: str = "") -> str:
    return f"the network returns a {type(output).__name__}{when}: it has to return one tensor of logits (N, C)"


def _row(pooled: Tensor) -> Tensor:
    """(N, D) of (N, D, 1, 1), as a convolution has it; anything else as it is."""
    return pooled.flatten(1) if pooled.dim() == 4 and pooled.shape[2:] == (1, 1) else pooled


def _normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    if mean is None and std is None:
        return torch.empty(0), torch.empty(0)
    means, stds = _numbers(mean), _numbers(std)
    if not means or len(means) != len(stds):
        found = " ".join(f"mean is {mean} and std is {std}".split())  # a tensor's text has several lines
        raise ModelError(f"{found}: give both, with one number for each channel")
    if not all(0 < value < math.inf for value in stds):
        raise ModelError(f"std is {stds}: every deviation has to be positive and finite")
    if not all(0 <= value <= 1 for value in means):
        raise ModelError(
            f"mean is {means}: images are in [0, 1], and so is their mean (divide those of 0..255, and std, by 255)"
        )
    return torch.tensor(means, dtype=torch.float32), torch.tensor(stds, dtype=torch.float32)


def _numbers(values: object) -> list[float]:
    """The numbers of a list, a tuple, or a tensor of one row; nothing of anything else."""
    found = values.tolist() if isinstance(values, (Tensor, np.ndarray)) else values
    if not isinstance(found, (list, tuple)) or not all(isinstance(value, Real) for value in found):
        return []
    return list(found)
