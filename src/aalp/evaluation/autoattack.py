"""AutoAttack (arXiv 2003.01690) from its authors' package pyautoattack, one part at a time.

The parts and their settings are the package's own; we only hand over the images that still
stand, batch by batch, and keep its seeding away from everybody else's random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.method.threat import Threat
from aalp.models.classifier import Classifier

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The parts of the standard version, in its order."""


def autoattack_part(part: str, queries: int = 5000) -> Callable[[Classifier, Tensor, Tensor, Threat, int], Tensor]:
    """One part of AutoAttack standard as (classifier, images, labels, threat, seed) -> candidates.

    Args:
        queries: of Square, for each image; 5000 is the standard.
    """

    def function(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _frozen(classifier):
            attack = _standard(classifier, threat, seed, images.device)
            attack.square.n_queries = queries
            candidates: Tensor = _PARTS[part](attack)(images, labels)
            return candidates.detach()

    return function


def _standard(classifier: Classifier, threat: Threat, seed: int, device: torch.device) -> Any:
    from pyautoattack import AutoAttack  # pulls in what only an evaluation needs

    attack = AutoAttack(classifier, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=device)
    # With C classes there are C - 1 others to aim at; the package would index past them.
    targets = min(9, classifier.num_classes - 1)
    attack.apgd_targeted.n_target_classes = targets
    attack.fab.n_target_classes = targets
    if classifier.num_classes < 4:
        # The targeted DLR loss divides by a difference that needs four logits; below, aim with its numerator alone.
        attack.apgd_targeted.dlr_loss_targeted = _TargetedMargin(attack.apgd_targeted)
    attack.fab.targeted = True
    attack.apgd.loss = "ce"
    for piece in (attack.apgd, attack.apgd_targeted, attack.fab, attack.square):
        piece.seed = seed
    return attack


_PARTS: dict[str, Callable[[Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "apgd-ce": lambda attack: attack.apgd.perturb,
    "apgd-t": lambda attack: attack.apgd_targeted.perturb,
    "fab-t": lambda attack: attack.fab.perturb,
    "square": lambda attack: attack.square.perturb,
}


@contextmanager
def _frozen(classifier: Classifier) -> Iterator[None]:
    """No gradients for the weights inside the block: FAB calls `backward`, which would leave them on trained ones."""
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _TargetedMargin:
    """z_target - z_label, scaled by the spread of the logits: the targeted DLR loss where there are only 2 or 3 classes."""

    def __init__(self, attack: Any) -> None:
        self.attack = attack

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        chosen = F.one_hot(self.attack.y_target, logits.shape[1]) - F.one_hot(labels, logits.shape[1])
        spread = logits.amax(1) - logits.amin(1)
        # Without the detach two classes would give the constant 1.
        return (logits * chosen).sum(1) / (spread.detach() + 1e-12)
