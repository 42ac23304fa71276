"""Copies of a network: torch does not copy a tensor of a pass with its history, and some things nobody does."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from aalp.errors import ModelError

Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network, images: Tensor) -> Network:
    """A copy with weights and buffers of its own.

    Args:
        images: (N, ...) what it takes, if it has to be run for it to be copied.

    Raises:
        ModelError: it keeps something that Python does not copy, such as a lock, an open file or another library's handle.
    """
    try:
        try:
            return copy.deepcopy(network)
        except RuntimeError:
            forget(network, images)
            return copy.deepcopy(network)
    except (TypeError, ValueError) as error:  # what `copy` and ctypes raise
        raise ModelError(
            f"the network does not let itself be copied ({error}): keep what is no tensor outside the module, as a global, "
            "or give its class a __deepcopy__"
        ) from error


@torch.no_grad()
def forget(network: nn.Module, images: Tensor) -> None:
    """One pass without history: torch does not copy a network that keeps a tensor of its last pass with it."""
    network(images.detach())
