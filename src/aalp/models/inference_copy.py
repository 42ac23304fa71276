"""Frozen copies of a network to search by: BatchNorm folded into the layer before it, weights in a shorter number format.

The pairs are found by tracing, in any network that can be traced. Tracing and comparing the logits takes several
passes, which an evaluation pays once and a training would pay at every step, since the weights have changed: the
training attack folds in place instead (`folding_in_place.py`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from aalp.models.classifier import copied

TOLERANCE = 1e-4
"""Largest change of a logit, in units of the logits' spread, that counts as rounding."""


@torch.no_grad()
def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A frozen copy in evaluation mode with every BatchNorm that directly follows a convolution or a Linear folded into it.

    A network that cannot be traced, or whose traced copy gives other logits (one that draws random numbers does), is
    copied as it is: folding makes passes cheaper and changes nothing else.

    Args:
        images: (N, ...) what the network takes, to compare the logits on.
    """
    plain = copied(network, images).requires_grad_(False).eval()
    try:
        traced = fx.symbolic_trace(copy.deepcopy(plain))
        _fold(traced)
        same = same_logits(traced(images), plain(images))
    except Exception:  # any network is traced here, and its own code may object in any way
        return plain
    return traced if same else plain


def in_bfloat16(network: nn.Module) -> nn.Module:
    """The network itself with its weights in bfloat16; BatchNorm keeps float32, which it takes beside bfloat16 images."""
    for module in network.modules():
        if not isinstance(module, _BatchNorm):
            for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if own.is_floating_point():
                    own.data = own.data.to(torch.bfloat16)
    return network


def _fold(traced: fx.GraphModule) -> None:
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm):
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer = modules[str(before.target)]
        # A layer that runs twice has two outputs, and only one of them goes through this BatchNorm.
        if sum(other.target == before.target for other in traced.graph.nodes) > 1:
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
    traced.requires_grad_(False)


def same_logits(logits: Tensor, others: Tensor) -> bool:
    """Whether logits (N, C) are others up to rounding."""
    spread = float((others.amax() - others.amin()).clamp_min(1e-12))
    return logits.shape == others.shape and float((logits - others).abs().amax()) <= TOLERANCE * spread
