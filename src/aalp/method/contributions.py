"""How much each feature contributes to a logit, and how concentrated those contributions are.

With a linear head, z_t = b_t + sum_k W_tk h_k: the contribution of feature k to class t is
c_k = W_tk h_k, exactly and without a backward pass. Deeper in a network, or before a head that
is not linear, gradient times activation takes its place.

Shapes: N images, D features; contributions (N, D); every concentration measure gives (N,) and
looks at the positive contributions only. An image without a positive contribution measures 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aalp.errors import ModelError, unknown_name


def contributions(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """c_k = W_tk h_k, which sum to z_t - b_t.

    Args:
        features: (N, D), the input of the linear head.
        weight: (C, D), the head's weight.
        targets: (N,), the class t of each image: the label in training, the prediction elsewhere.
    """
    return features * weight[targets]


def layer_contributions(network: nn.Module, layer: str, images: Tensor, targets: Tensor) -> Tensor:
    """Gradient times activation of a named layer's output, with respect to the logit of each image's target.

    Args:
        network: anything that maps images (N, ...) to logits (N, C); its mode is left as it is.
        layer: the layer's name in `network.named_modules()`.
        targets: (N,) classes.

    Returns:
        A tensor of the shape of the layer's output; sum it over space to have one number a channel.

    Raises:
        ModelError: there is no such layer, or its output does not lead to the logits.
    """
    modules = dict(network.named_modules())
    if layer not in modules:
        raise ModelError(unknown_name("layer", layer, (name for name in modules if name)))
    activations: list[Tensor] = []

    def capture(_module: nn.Module, _inputs: tuple[object, ...], output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise ModelError(f"layer '{layer}' gives a {type(output).__name__}: name a layer that gives one tensor")
        # A fresh leaf cuts the graph here, so that the gradient needs no pass through the layers below.
        leaf = output.detach().requires_grad_()
        activations.append(leaf)
        return leaf.clone()  # the step after it may work in place, which a leaf does not allow

    handle = modules[layer].register_forward_hook(capture)
    try:
        with torch.enable_grad():
            logits = network(images)
            if not activations:
                raise ModelError(f"layer '{layer}' did not run: name a layer that the network's forward uses")
            selected = logits.gather(1, targets[:, None]).sum()
            on_the_way = selected.requires_grad  # not even that, in a frozen network, if the layer is off the path
            gradient = torch.autograd.grad(selected, activations[-1], allow_unused=True)[0] if on_the_way else None
    finally:
        handle.remove()
    if gradient is None:
        raise ModelError(f"the logits do not depend on layer '{layer}': name a layer on the way to them")
    return gradient * activations[-1].detach()


def concentration_n(contributions: Tensor, mass: float = 0.9) -> Tensor:
    """The fewest features that together carry `mass` of the positive contributions (n90 by default), as float."""
    ordered = contributions.clamp_min(0).sort(dim=1, descending=True).values
    total = ordered.sum(1, keepdim=True)
    # A feature is needed as long as those before it do not carry the mass yet.
    carried_before = ordered.cumsum(1) - ordered
    needed = (carried_before < mass * total * (1 - 1e-6)) & (ordered > 0)
    return needed.sum(1).to(contributions.dtype)


def effective_number(contributions: Tensor) -> Tensor:
    """(sum c)^2 / sum c^2: how many equal contributions would be as concentrated as these."""
    positive = _of_largest(contributions)
    squares = positive.square().sum(1)
    return torch.where(squares > 0, positive.sum(1).square() / squares.clamp_min(torch.finfo(squares.dtype).tiny), 0.0)


def gini(contributions: Tensor) -> Tensor:
    """Gini coefficient of the positive part: 0 when all features contribute equally, (D - 1) / D when one does all."""
    ordered = _of_largest(contributions).sort(dim=1).values
    size = ordered.shape[1]
    rank = torch.arange(1, size + 1, device=ordered.device, dtype=ordered.dtype)
    total = ordered.sum(1)
    weighted = (ordered * (2 * rank - size - 1)).sum(1)
    return torch.where(total > 0, weighted / (size * total).clamp_min(torch.finfo(total.dtype).tiny), 0.0)


def _of_largest(contributions: Tensor) -> Tensor:
    """The positive part as multiples of each image's largest: squares of huge or tiny ones do not fit float32."""
    positive = contributions.clamp_min(0)
    return positive / positive.amax(1, keepdim=True).clamp_min(torch.finfo(positive.dtype).tiny)
