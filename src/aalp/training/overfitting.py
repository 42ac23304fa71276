"""Catastrophic overfitting: a network that learns to withstand the one step it is trained on, and nothing else.

Training with an attack of one or two steps may from one moment to the next raise the accuracy under that attack while
the accuracy under PGD falls to nothing (arXiv 2001.03994, section 5.4). Seen on the batches themselves, as it happens;
what helps is an attack of more steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from aalp.distributed import Shard
from aalp.method.pgd import AttackOptions, evaluating
from aalp.training.step import TrainingStep

EVERY = 50
"""Optimizer steps between two looks."""

IMAGES = 64
"""Images of the batch looked at, at most; a look then costs a few percent of the steps between two."""

MOST_STEPS = 2
"""Attacks of more steps are not known to be overfitted to."""

JUDGE = AttackOptions(steps=5)
"""The attack that cannot be fooled so easily, beside which the one of training is seen."""


def is_watched(attack: AttackOptions) -> bool:
    """Whether a training attack is one that may be overfitted to, and is to be replaced then."""
    return attack.fallback and attack.steps <= MOST_STEPS


def accuracies(
    step: TrainingStep, images: Tensor, labels: Tensor, generator: torch.Generator, attack: AttackOptions, eps_share: float
) -> tuple[float, float]:
    """Accuracy of the network as it stands under the attack of training, and under PGD of the same eps, on a few images.

    Both in evaluation mode and in [0, 1], over the same images whatever the number of processes.

    Args:
        images: this rank's (n, ...) of the batch.
        labels: (N,) of the whole batch.
    """
    own = step.ranks.shard(len(labels))
    chosen = torch.arange(0, len(labels), _stride(len(labels)), device=labels.device)
    before, within = (int((chosen < row).sum()) for row in (own.start, own.stop))
    shard = Shard(before, within, len(chosen))
    images, labels = images[chosen[shard.rows] - own.start], labels[chosen[shard.rows]]
    right = []
    with step.weights.whole():
        for each in (attack, JUDGE):
            adversarial = step.perturb(images, labels, generator, each, eps_share, shard=shard)
            with torch.no_grad(), evaluating(step.classifier), step.fabric.autocast():
                right.append(int((step.classifier(adversarial).argmax(1) == labels).sum()))
    trained, judged = step.ranks.total(*right)
    return trained / len(chosen), judged / len(chosen)


def images_looked_at(batch_size: int) -> int:
    """How many images of a batch one look is at."""
    return -(-batch_size // _stride(batch_size))


def _stride(batch_size: int) -> int:
    return -(-batch_size // IMAGES)


def is_overfitted(trained: float, judged: float, images: int) -> bool:
    """Whether accuracy under PGD is less than half of that under the attack of training, and far below it.

    Where training goes well the two differ by a few points. A fifth of 64 images between them is more than chance does in one
    of the many looks of a training; of 8 images it takes 5, of 16 7.

    Args:
        images: on how many the accuracies were seen.
    """
    return judged < trained / 2 and trained - judged > max(0.2, 1.5 / math.sqrt(images))


def after_fallback(attack: AttackOptions, steps: int) -> AttackOptions:
    """The attack that takes over: projected gradient descent of so many steps, its eps as before."""
    return replace(attack, steps=steps, step_size=None, random_start=1.0, project=True, first_steps=None)
