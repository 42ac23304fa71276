"""The layer that gives the logits: finding it, making it anew for other classes, putting its classes in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from aalp.errors import ModelError

Head = nn.Linear | nn.Conv2d
"""A Linear, or a 1x1 convolution on pooled features, which is the same."""


def head_layer(network: nn.Module, name: str) -> Head:
    """The layer of this name.

    Raises:
        ModelError: there is none, or it is no head.
    """
    layer = dict(network.named_modules()).get(name)
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and is_head(layer):
        return layer
    found = "no layer of that name" if layer is None else f"a {type(layer).__name__}"
    raise ModelError(f"head '{name}' is {found}: name the torch.nn.Linear that gives the logits")


def find_head(network: nn.Module) -> str:
    """The name of the last Linear in the order of definition; where there is none, of the last 1x1 convolution.

    Raises:
        ModelError: there is neither.
    """
    modules = list(network.named_modules())
    linear = [name for name, module in modules if isinstance(module, nn.Linear)]
    names: list[str] = linear or [name for name, module in modules if is_head(module)]
    if not names:
        raise ModelError(
            f"{type(network).__name__} has no torch.nn.Linear: a classifier's logits have to end in one "
            "(a last convolution can be rewritten as a Linear after pooling)"
        )
    return names[-1]


def is_head(layer: nn.Module) -> bool:
    """Whether this kind of layer can give logits."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def replace_head(network: nn.Module, num_classes: int) -> nn.Module:
    """The network with a fresh head for this many classes (changed in place; a network that is its head comes back anew)."""
    name = find_head(network)
    old = head_layer(network, name)
    bias = old.bias is not None
    fresh: Head = (
        nn.Linear(old.in_features, num_classes, bias)
        if isinstance(old, nn.Linear)
        else nn.Conv2d(old.in_channels, num_classes, 1, bias=bias)
    )
    if name == "":
        return fresh
    network.set_submodule(name, fresh)
    return network


@torch.no_grad()
def reorder_head(head: Head, order: Sequence[int]) -> None:
    """Let row k of the head be what was row order[k]: the classes in another order."""
    head.weight.copy_(head.weight[list(order)])
    if head.bias is not None:
        head.bias.copy_(head.bias[list(order)])


def class_order(own: Sequence[str] | None, wanted: Sequence[str]) -> list[int] | None:
    """Where each wanted class stands among a model's own; None where their names say nothing on it.

    Upper and lower case, blanks, - and _ make no difference, `Great white shark` is `great_white_shark`, unless they are
    all that tells classes apart, as `A` and `a` in EMNIST.
    """
    if own is None or len(own) != len(wanted):
        return None
    everything = list(range(len(wanted)))
    if list(map(str, own)) == list(map(str, wanted)):  # two classes of one name, too: ImageNet has two cranes
        return everything
    for form in (str, _plain):
        places = {form(name): place for place, name in enumerate(own)}
        order = [places.get(form(name), -1) for name in wanted]
        if sorted(order) == everything:
            return order
    return None


def _plain(name: str) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")
