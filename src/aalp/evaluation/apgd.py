"""APGD (arXiv 2003.01690), point by point what pyautoattack's does, without what no verdict hangs on.

An image leaves the batch at the step that fools the deployed network; steps and gradients may be taken on another view of
it (`views.py`). A point that only this view misclassifies stays in the search.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.evaluation.targets import over_targets
from aalp.evaluation.views import Views
from aalp.method.batches import per_image
from aalp.method.losses import misclassified
from aalp.method.threat import Threat
from aalp.models.inference_copy import Logits

STEPS = 100
MOMENTUM = 0.75
RHO = 0.75
"""A step size is halved where fewer than this share of the steps since the last check rose."""

STEEP = 1e15
"""Stands for an infinite slope, as a root has it at 0; the squares of a million of them are finite in float32."""

FIRST_CHECK, CHECK_SHRINKS, LAST_CHECK = 22, 3, 6
"""Steps to the first check of the step size, how many fewer to each later one, and the fewest; of 100 in all."""

TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (N, C), labels (N,), targets (N,)) -> what is maximised (N,)."""


def cross_entropy_loss(logits: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
    """CE, the loss of APGD-CE."""
    return F.cross_entropy(logits, labels, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted difference-of-logits ratio, the loss of APGD-T.

    It divides by a difference that needs four logits. With 2 or 3 classes it is the numerator alone: over the logits' spread it
    would be -1 wherever the label's is the largest and the target's the smallest, and no step better than another.
    """
    gain = logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]
    if logits.shape[1] < 4:
        return gain
    largest = logits.topk(4, dim=1).values  # of 1,000 classes a sort takes thirty times as long
    return gain / (largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3]) + 1e-12)


def apgd_ce(views: Views, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
    """Candidates (N, ...) of APGD on cross-entropy; an image that none was found for comes back as it is."""
    start = _random_start(images, threat, torch.Generator().manual_seed(seed))
    return _search(views, images, labels, labels, threat, cross_entropy_loss, start)


@torch.no_grad()
def apgd_targeted(views: Views, images: Tensor, labels: Tensor, threat: Threat, seed: int, capacity: int) -> Tensor:
    """Candidates (N, ...) of APGD on the targeted DLR loss, aimed at up to 9 other classes, the likeliest first.

    Args:
        capacity: as many targets as fill it go through the network together; every image that stands has its own starts.
    """
    generator = torch.Generator().manual_seed(seed)

    def search(points: Tensor, truth: Tensor, aims: Tensor, times: int) -> Tensor:
        starts = torch.cat([_random_start(part, threat, generator) for part in points.chunk(times)])
        return _search(views, points, truth, aims, threat, targeted_dlr, starts)

    # The first target breaks most of what breaks.
    return over_targets(views, images, labels, capacity, search, first_alone=True)


def _random_start(images: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """On the ball's surface; drawn on the CPU, as by the package, so that it is the same on every device."""
    linf = threat.norm == "Linf"
    noise = 2 * torch.rand(images.shape, generator=generator) - 1 if linf else torch.randn(images.shape, generator=generator)
    return (images + threat.eps * _normalised(noise.to(images.device), threat)).clamp(0, 1)


def _normalised(change: Tensor, threat: Threat) -> Tensor:
    flat = change.flatten(1)
    length = flat.abs().amax(1) if threat.norm == "Linf" else (flat**2).sum(1).sqrt()
    return change / (per_image(length, change) + 1e-12)


@torch.no_grad()
def _search(
    views: Views, images: Tensor, labels: Tensor, targets: Tensor, threat: Threat, loss: TargetedLoss, start: Tensor
) -> Tensor:
    """One run. `rows` are the places of the images that still stand; every other tensor is of those alone."""
    candidates = images.clone()
    rows = torch.arange(len(images), device=images.device)
    now, before = start, start
    logits, value, gradient = _ascent(views.rough, now, labels, targets, loss)
    best, best_value, best_gradient = now, value, gradient
    step = torch.full_like(value, 2 * threat.eps)
    checked_value, reduced = value, torch.ones_like(value, dtype=torch.bool)
    # As in the package the first step is compared with 0, which stands where no loss has been written yet.
    previous, rises = torch.zeros_like(value), torch.zeros_like(value)
    every, since = FIRST_CHECK, 0
    for number in range(STEPS + 1):
        fooled = _confirmed(views, now, labels, logits)
        if number == STEPS and views.is_rough:  # the last look is the deployed network's own
            fooled |= ~fooled & views.wrong(best, labels)
            now = torch.where(per_image(views.wrong(now, labels), now), now, best)
        if bool(fooled.any()):
            candidates[rows[fooled]] = now[fooled]
            keep = ~fooled
            rows, images, labels, targets = rows[keep], images[keep], labels[keep], targets[keep]
            now, before, gradient = now[keep], before[keep], gradient[keep]
            best, best_value, best_gradient = best[keep], best_value[keep], best_gradient[keep]
            step, checked_value, reduced = step[keep], checked_value[keep], reduced[keep]
            previous, rises, value = previous[keep], rises[keep], value[keep]
        if number == STEPS or len(rows) == 0:
            return candidates
        if number > 0:
            better = value > best_value
            mask = per_image(better, now)
            best, best_gradient = torch.where(mask, now, best), torch.where(mask, gradient, best_gradient)
            best_value = torch.where(better, value, best_value)
            rises += value > previous
            previous, since = value, since + 1
            if since == every:
                stuck = (rises <= every * RHO) | (~reduced & (checked_value >= best_value))
                reduced, checked_value = stuck, best_value
                step = torch.where(stuck, step / 2, step)
                mask = per_image(stuck, now)
                now, gradient = torch.where(mask, best, now), torch.where(mask, best_gradient, gradient)
                every, since = max(every - CHECK_SHRINKS, LAST_CHECK), 0
                rises = torch.zeros_like(rises)
        after = _stepped(now, before, images, gradient, step, threat, MOMENTUM if number > 0 else 1.0)
        before, now = now, after
        logits, value, gradient = _ascent(views.rough, now, labels, targets, loss)
    raise AssertionError("the last step returns")


def _ascent(view: Logits, images: Tensor, labels: Tensor, targets: Tensor, loss: TargetedLoss) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits = view(leaf)
        value = loss(logits, labels, targets)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    # Else one pixel that has no slope would leave its whole image where it is, in L2.
    return logits.detach(), value.detach(), gradient.nan_to_num(0.0, STEEP, -STEEP)


def _confirmed(views: Views, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """Which images (N,) the search misclassifies and the deployed network, too."""
    fooled = misclassified(logits, labels)
    claims = fooled.nonzero()[:, 0]
    if len(claims):
        fooled[claims] = views.wrong(images[claims], labels[claims])
    return fooled


def _stepped(
    now: Tensor, before: Tensor, images: Tensor, gradient: Tensor, step: Tensor, threat: Threat, share: float
) -> Tensor:
    """A step and a part of the last one, each back into the ball."""
    sizes = per_image(step, now)
    if threat.norm == "Linf":
        low, high = (images - threat.eps).clamp_min(0), (images + threat.eps).clamp_max(1)
        ahead = torch.clamp(now + sizes * gradient.sign(), low, high)
        return torch.clamp(now + (ahead - now) * share + (now - before) * (1 - share), low, high)

    def back(points: Tensor) -> Tensor:
        change = points - images
        length = (change**2).flatten(1).sum(1).sqrt().clamp_max(threat.eps)
        return (images + _normalised(change, threat) * per_image(length, change)).clamp(0, 1)

    ahead = back(now + sizes * _normalised(gradient, threat))
    return back(now + (ahead - now) * share + (now - before) * (1 - share))
