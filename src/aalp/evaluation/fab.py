"""FAB-T (arXiv 1907.02044), point by point what pyautoattack's does, with fewer passes and only as long as a verdict needs.

FAB looks for the nearest misclassified image however far it is; a verdict asks for one inside the ball, so an image leaves
the batch with its first. All targets of an image may go through the network together: nothing here is random.

In float32 throughout: steps get as small as what bfloat16 rounds away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aalp.evaluation.hyperplane import shortest_change
from aalp.evaluation.targets import over_targets
from aalp.evaluation.views import Views
from aalp.method.batches import per_image
from aalp.method.losses import misclassified
from aalp.method.threat import Threat

STEPS = 100
ALPHA_MAX = 0.1
"""The largest share of the step from the image itself."""

OVERSHOOT = 1.05
"""How far past the linearised boundary a step goes, in units of the way to it."""

BACKWARD = 0.9
"""Share of its change that a misclassified point keeps, to look for a nearer one."""


@torch.no_grad()
def fab_targeted(views: Views, images: Tensor, labels: Tensor, threat: Threat, capacity: int) -> Tensor:
    """Candidates (N, ...) of FAB-T on up to 9 other classes, the likeliest first; an image that none was found for comes back.

    Args:
        capacity: as many targets as fill it go through the network together.
    """

    def search(points: Tensor, truth: Tensor, aims: Tensor, _times: int) -> Tensor:
        return _search(views, points, truth, aims, threat)

    return over_targets(views, images, labels, capacity, search)


def _search(views: Views, images: Tensor, labels: Tensor, targets: Tensor, threat: Threat) -> Tensor:
    """One run. `rows` are the places of the images that still stand; every other tensor is of those alone."""
    candidates = images.clone()
    rows, now = torch.arange(len(images), device=images.device), images
    for _ in range(STEPS):
        gap, gradient = _boundary(views, now, labels, targets)
        now = _stepped(images, now, gap, gradient, threat)
        outside = misclassified(views.steady(now), labels)
        near = (outside & (threat.distance(now, images) <= threat.eps)).nonzero()[:, 0]
        done = torch.zeros_like(outside)
        if len(near):
            done[near] = views.wrong(now[near], labels[near])
            candidates[rows[done]] = now[done]
        now = torch.where(per_image(outside, now), images + (now - images) * BACKWARD, now)
        if bool(done.any()):
            keep = ~done
            rows, images, labels, targets, now = rows[keep], images[keep], labels[keep], targets[keep], now[keep]
            if len(rows) == 0:
                break
    return candidates


def _boundary(views: Views, images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How far the target's logit is above the label's (N,), and its gradient (N, ...)."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits = views.steady(leaf)
        gap = logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
    # A plane needs finite slopes: pixels without one stay, and do not keep the others from going.
    return gap.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)


def _stepped(images: Tensor, now: Tensor, gap: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    """Towards the linearised boundary from both the current point and the image, more from the one that is nearer to it."""
    count = len(images)
    normal = gradient.flatten(1)
    offset = -gap + (gradient * now).flatten(1).sum(1)
    points = torch.cat([now.flatten(1), images.flatten(1)])
    change = shortest_change(points, torch.cat([normal, normal]), torch.cat([offset, offset]), threat)
    length = change.abs().amax(1) if threat.norm == "Linf" else (change**2).sum(1).sqrt()
    length = length.clamp_min(1e-8)
    share = per_image((length[:count] / (length[:count] + length[count:])).clamp(0, ALPHA_MAX), now)
    from_now, from_image = change[:count].reshape(now.shape), change[count:].reshape(now.shape)
    return ((now + OVERSHOOT * from_now) * (1 - share) + (images + from_image * OVERSHOOT) * share).clamp(0, 1)
