"""Frozen copies of a network to search by: BatchNorm folded into its neighbours, weights in a shorter number format.

The pairs are found by tracing, in any network that can be traced. Tracing and comparing the logits takes several
passes, which an evaluation pays once and a training would pay at every step, since the weights have changed: the
training attack folds in place instead (`folding_in_place.py`).
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from aalp.models.copies import copied

Logits = Callable[[Tensor], Tensor]
"""Images (N, ...) -> logits (N, C)."""

TOLERANCE = 1e-4
"""Largest change of a logit, in units of the logits' spread, that counts as rounding."""

KINKS = 0.05
"""Largest change of the gradients, as a share of their norm, that counts as rounding: it turns a ReLU or two the other way."""

LEAST_SCALE = 1e-3
"""Smallest scale of a BatchNorm, in units of its largest, that is taken out of a ReLU: its shift is divided by it."""

RELUS = (functional.relu, torch.relu, "relu", "relu_")
"""ReLU as a function or a method of what it takes."""


class Shift(nn.Module):
    """What is left of a BatchNorm whose scale has gone into the convolutions after it.

    Args:
        by: (C,) what is added to each map.
    """

    by: Tensor

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by.view(-1, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        by = self.by.to(maps.dtype)
        if maps.device.type == "cpu" and maps.is_contiguous(memory_format=torch.channels_last):
            # A row of pixels at a time: 16 channels of bfloat16 are half a vector, by which alone it takes seven times as long.
            by = by.view(1, -1).expand(maps.shape[3], -1).contiguous().t().unsqueeze(1)
        return maps + by


@torch.no_grad()
def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A frozen copy in evaluation mode with every BatchNorm folded that has a neighbour to be folded into.

    One that directly follows a convolution or a Linear goes into that; of one that goes through a ReLU into convolutions
    alone these take the scale. A network that cannot be traced, or whose traced copy is not `alike` (as of one that draws
    random numbers, or has a backward pass of its own), is copied as it is: folding makes passes cheaper and changes
    nothing else.

    Args:
        images: (N, ...) what the network takes, to compare the two on.
    """
    plain = copied(network, images).requires_grad_(False).eval()
    try:
        traced = fx.symbolic_trace(copy.deepcopy(plain))
        _fold(traced)
        _fold_ahead(traced)
        traced.requires_grad_(False)
        # Without a gradient, too: tracing loses the `enable_grad` of a network that takes one of its own on the way.
        with unprinted():
            return traced if same_logits(traced(images), plain(images)) and alike(traced, plain, images) else plain
    except Exception:  # any network is traced here, and its own code may object in any way
        return plain


def unprinted() -> contextlib.AbstractContextManager[object]:
    """For passes that may fail: where a traced network does, torch prints a traceback beside raising the error."""
    return contextlib.redirect_stderr(io.StringIO())


def in_bfloat16(network: nn.Module) -> nn.Module:
    """The network itself with its weights in bfloat16; BatchNorm keeps float32, which it takes beside bfloat16 images."""
    for module in network.modules():
        if not isinstance(module, _BatchNorm):
            for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if own.is_floating_point():
                    own.data = own.data.to(torch.bfloat16)
    return network


def _fold(traced: fx.GraphModule) -> None:
    modules, uses = dict(traced.named_modules()), _uses(traced)
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm):
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer = modules[str(before.target)]
        # A layer that runs twice has two outputs, and only one of them goes through this BatchNorm.
        if uses[str(before.target)] > 1:
            continue
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        traced.set_submodule(str(before.target), fused)
        modules[str(before.target)] = fused
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _fold_ahead(traced: fx.GraphModule) -> None:
    modules, uses = dict(traced.named_modules()), _uses(traced)
    for node in traced.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(norm) is not nn.BatchNorm2d or uses[node.target] > 1 or len(node.users) != 1:
            continue
        (relu,) = node.users
        if not (isinstance(modules.get(str(relu.target)), nn.ReLU) if relu.op == "call_module" else relu.target in RELUS):
            continue
        after = [modules.get(str(user.target)) if user.op == "call_module" else None for user in relu.users]
        convolutions = [layer for layer in after if type(layer) is nn.Conv2d and layer.groups == 1]
        taken_out = out_of_relu(norm)
        if taken_out is None or len(convolutions) < len(after) or any(uses[str(user.target)] > 1 for user in relu.users):
            continue
        scale, shift = taken_out
        for convolution in convolutions:
            convolution.weight.data *= scale.view(1, -1, 1, 1)
        traced.set_submodule(str(node.target), Shift(shift))


def _uses(traced: fx.GraphModule) -> Counter[str]:
    """How often each layer runs, by name."""
    return Counter(str(node.target) for node in traced.graph.nodes)


def scale_of(norm: nn.BatchNorm2d) -> Tensor:
    """g / s (C,) of a BatchNorm with statistics in evaluation mode, g (x - m) / s + h with s^2 = v + epsilon."""
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach()


def out_of_relu(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor] | None:
    """A scale and a shift, each (C,), with relu(norm(x)) = scale relu(x + shift); None where there are none.

    A positive factor comes out of a ReLU. The backward pass of what is left, x + shift, costs nothing.
    """
    if norm.running_mean is None:
        return None
    scale = scale_of(norm)
    if not bool(scale.amin() > LEAST_SCALE * scale.amax()):
        return None
    shift = -norm.running_mean if norm.bias is None else norm.bias.detach() / scale - norm.running_mean
    return scale, shift


def alike(one: Logits, other: Logits, images: Tensor) -> bool:
    """Whether a search by one is as good as one by the other: at images (N, ...) logits and gradients are the same to rounding.

    Tracing loses what a `torch.autograd.Function` has for a backward pass, and every `no_grad`: the logits stay, and the
    gradient of a straight-through estimator is gone. An attack would find nothing there, and report robustness.
    """
    (logits, slope), (others, wanted) = _with_slope(one, images), _with_slope(other, images)
    return same_logits(logits, others) and float((slope - wanted).norm()) <= KINKS * float(wanted.norm())


@torch.enable_grad()
def _with_slope(view: Logits, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C), and the gradient (N, ...) of their sum by fixed random weights; zeros where there is none."""
    leaf = images.detach().clone().requires_grad_()
    logits = view(leaf.clone())  # a step in place is for autograd not one on a leaf
    if not logits.requires_grad:
        return logits, torch.zeros_like(images)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    (slope,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True, materialize_grads=True)
    return logits.detach(), slope


def same_logits(logits: Tensor, others: Tensor) -> bool:
    """Whether logits (N, C) are others up to rounding."""
    spread = float((others.amax() - others.amin()).clamp_min(1e-12))
    return logits.shape == others.shape and float((logits - others).abs().amax()) <= TOLERANCE * spread
