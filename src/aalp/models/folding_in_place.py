"""BatchNorm folded into the convolutions beside it, in the network itself, while its statistics stand still.

In evaluation mode a BatchNorm that follows a convolution is one more linear map of its output: scaling the
convolution's filters and shifting its bias does the same in one pass less, forward and backward. An attack of K
steps between two optimizer steps is where that pays. One that goes through a ReLU into convolutions leaves them its scale, and
only a shift stays, whose backward pass is none. Only pairs of modules that are known to run one straight after
the other are folded, without tracing; every other part of a network runs as it is. Searches of an evaluation, which keep
their network for thousands of passes, use a traced copy (`inference_copy.py`), which finds more pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from aalp.method.pgd import evaluating
from aalp.models.classifier import Classifier
from aalp.models.copies import copied
from aalp.models.inference_copy import Shift, out_of_relu, same_logits, scale_of

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "aalp.models.preact_resnet.PreActBlock": (("conv1", "norm2"),),
    "timm.models.resnet.BasicBlock": (("conv1", "bn1"), ("conv2", "bn2")),
    "timm.models.resnet.Bottleneck": (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    "timm.models.resnet.ResNet": (("conv1", "bn1"),),
    "torchvision.models.resnet.BasicBlock": (("conv1", "bn1"), ("conv2", "bn2")),
    "torchvision.models.resnet.Bottleneck": (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    "torchvision.models.resnet.ResNet": (("conv1", "bn1"),),
}
"""Class, and the names of its convolutions and norms of which the second takes just what the first gives."""

AHEAD: dict[str, tuple[str, tuple[str, ...]]] = {"aalp.models.preact_resnet.PreActBlock": ("norm1", ("conv1", "shortcut"))}
"""Class, and the name of its norm that goes through a ReLU into these convolutions, those of them it has, and nowhere else."""

FOLDS = "norms_fold"
"""Attribute of a network: whether its pairs may be folded, where somebody has looked."""


@contextmanager
def folded_norms(network: nn.Module) -> Iterator[int]:
    """Inside the block, known BatchNorms are folded into the convolutions beside them; after it, all is as before.

    For a network in evaluation mode whose weights do not change inside the block; the outputs are the same up to
    rounding. The weights themselves, their gradients and the statistics are not touched.

    Yields:
        How many norms were folded.
    """
    looked_at = getattr(network, FOLDS, True)
    pairs, ahead = (foldable(network), foldable_ahead(network)) if looked_at else ([], [])
    convs = [conv for conv, _ in pairs] + [conv for _, after, _, _ in ahead for conv in after]
    unfolded = [(conv, conv._parameters["weight"], conv._parameters["bias"]) for conv in convs]
    try:
        for conv, norm in pairs:
            weight, bias = _folded(conv, norm)
            # Leaves with gradients, because autocast keeps what it casts only of those: one cast an attack, not one a step.
            conv._parameters["weight"], conv._parameters["bias"] = nn.Parameter(weight), nn.Parameter(bias)
            norm.__dict__["forward"] = _unchanged
        for norm, after, scale, shift in ahead:
            norm.__dict__["forward"] = Shift(shift).forward
            for conv in after:
                conv._parameters["weight"] = nn.Parameter(conv.weight.detach() * scale.view(1, -1, 1, 1))
        yield len(pairs) + len(ahead)
    finally:
        for conv, old_weight, old_bias in unfolded:
            conv._parameters["weight"], conv._parameters["bias"] = old_weight, old_bias
        for norm in [norm for _, norm in pairs] + [norm for norm, *_ in ahead]:
            norm.__dict__.pop("forward", None)


@torch.no_grad()
def check_folding(network: Classifier, images: Tensor) -> None:
    """Have a network's pairs folded from here on only if that leaves its outputs as they are: in copies of it, too.

    A network may run the layers of an nn.Sequential one by one, and use what is between them.

    Args:
        images: (N, ...) what it takes.
    """
    if not foldable(network):
        return
    with evaluating(network):
        probe = copied(network, images).eval()
    generator = torch.Generator().manual_seed(0)
    for _, norm in foldable(probe):
        # Statistics of the start, 0 and 1, would hide what folding does.
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(0.5 * torch.randn(norm.num_features, generator=generator))
        norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
    plain = probe(images)
    with folded_norms(probe):
        setattr(network, FOLDS, same_logits(probe(images), plain))


def foldable(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The known pairs of a network that can be folded: plain, with statistics, unhooked, and each used in one place."""
    uses = _uses(network)
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    for module in network.modules():
        for conv, norm in _candidates(module):
            # A subclass, such as one that is parametrised, may compute something else.
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
                plain = all(_is_plain(part, uses) for part in (conv, norm))
                if plain and conv.out_channels == norm.num_features:
                    found.append((conv, norm))
    return found


def foldable_ahead(network: nn.Module) -> list[tuple[nn.BatchNorm2d, list[nn.Conv2d], Tensor, Tensor]]:
    """The known norms that leave their scale to the convolutions after a ReLU: with those, the scale (C,) and the shift (C,).

    On a CPU alone: whether every scale is positive is something a GPU would be waited for, in every step.
    """
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        return []
    uses = _uses(network)
    found = []
    for module in network.modules():
        norm_name, conv_names = AHEAD.get(_class_name(module), ("", ()))
        norm = getattr(module, norm_name, None)
        convs = [conv for conv in (getattr(module, name) for name in conv_names) if conv is not None]
        if type(norm) is nn.BatchNorm2d and all(type(conv) is nn.Conv2d for conv in convs):
            taken_out = out_of_relu(norm) if all(_is_plain(part, uses) for part in (norm, *convs)) else None
            if taken_out is not None:
                found.append((norm, convs, *taken_out))
    return found


def _uses(network: nn.Module) -> Counter[int]:
    return Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))


def _is_plain(part: nn.Module, uses: Counter[int]) -> bool:
    """Used in one place, and its class's own forward is all that runs."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return uses[id(part)] == 1 and not any(hooks) and "forward" not in part.__dict__


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _candidates(module: nn.Module) -> list[tuple[object, object]]:
    if type(module) is nn.Sequential:
        inside = list(module)
        return list(pairwise(inside))
    names = PAIRS.get(_class_name(module), ())
    return [(getattr(module, conv, None), getattr(module, norm, None)) for conv, norm in names]


@torch.no_grad()
def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The filters and the bias (C,) that do both: g (w x + b - m) / s + h with s^2 = v + epsilon."""
    assert norm.running_mean is not None
    scale = scale_of(norm)
    shift = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    bias = -shift * scale if norm.bias is None else norm.bias - shift * scale
    return conv.weight * scale.view(-1, 1, 1, 1), bias


def _unchanged(maps: Tensor) -> Tensor:
    return maps
