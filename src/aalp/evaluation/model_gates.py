"""Gates on the model itself, without an attack: is it logits, does it answer the same twice, is its gradient the slope?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aalp.evaluation.findings import NOT_FINITE, Finding, count_finding, undecided
from aalp.evaluation.gates import DETERMINISTIC, GRADIENT, SLOPE, STABLE
from aalp.method.batches import per_image
from aalp.method.losses import margin
from aalp.method.pgd import ImageClassifier, View
from aalp.method.threat import Threat

PASSES = 5
NOISES = 100
NOISE_RADIUS = 0.01
"""Of eps: far below what an attack's step moves."""
WIDER_RADIUS = 0.1
"""Of eps: where smaller noise does not agree with the gradient."""
HALVINGS = 24
"""Of the way to where a decision changes: what float32 can tell."""
ROUNDING = 1e-5
"""Of the logits: moves that float32 cannot tell from none, or not well enough to be correlated."""


class WithGradient(View):
    """A classifier whose outputs always hang on the images, if only with gradient zero.

    Torch raises where a network cuts the graph; here that is a finding, not an error.
    """

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.classifier(images) + 0 * images.flatten(1).sum(1, keepdim=True)

    def features(self, images: Tensor, /) -> Tensor:
        return self.classifier.features(images) + 0 * images.flatten(1).sum(1, keepdim=True)


@torch.no_grad()
def logits_gate(classifier: ImageClassifier, images: Tensor) -> Finding:
    """Whether the outputs (N, C) are finite and not probabilities (AutoAttack's `check_range_output`)."""
    outputs = classifier(images)
    broken = ~outputs.isfinite().all(1)
    if bool(broken.any()):
        count = int(broken.sum())
        return Finding(float(count), False, f"{NOT_FINITE}: {count} of {len(images)} images")
    probabilities = (outputs >= -1e-5).all(1) & ((outputs.sum(1) - 1).abs() < 1e-4)
    count = int(probabilities.sum())
    # Logits may be a distribution by chance on one image, not on all of them.
    return Finding(float(count), count < len(images), f"outputs that are a probability distribution: {count} of {len(images)}")


@torch.no_grad()
def deterministic_gate(classifier: ImageClassifier, images: Tensor, near: Tensor, expected: Tensor) -> Finding:
    """Whether 5 passes agree (AutoAttack's `check_randomized`); two batch the images in another way, the last has a gradient.

    And whether it answers after the images, on points near them in either batching, as a copy does that has seen none of the
    images: else it knows an adversarial image by the clean one that it was shown before, as no attacker would have to do, or
    by the others of its batch.

    Args:
        near: (N, ...) the points.
        expected: (N, C) what the copy answered on them.
    """
    passes = [classifier(images) for _ in range(PASSES - 3)] + [*_batched_otherwise(classifier, images)]
    with torch.enable_grad():  # the last one before points near: some may keep only what an attack differentiates
        passes.append(classifier(images.detach().clone().requires_grad_()).detach())
    gap, changed = _apart(torch.stack(passes))
    detail = f"largest gap of normalised logits {gap:.2g}; other predictions on {changed} of {len(images)} images"
    remembered, moved = _apart(torch.stack([expected, *_batched_otherwise(classifier, near)]))
    if not (remembered <= DETERMINISTIC.limit and moved == 0) and gap <= DETERMINISTIC.limit:
        detail = (
            f"near images that it was shown it answers otherwise than a copy that was not: gap {remembered:.2g}, other "
            f"predictions on {moved} of {len(images)} images"
        )
    worst = max(gap, remembered)
    return Finding(worst, worst <= DETERMINISTIC.limit and changed == moved == 0, detail)


def _batched_otherwise(classifier: ImageClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of the images turned around, and in two halves."""
    turned, half = classifier(images.flip(0)).flip(0), len(images) // 2
    return turned, torch.cat([classifier(part) for part in (images[:half], images[half:]) if len(part)])


def _apart(outputs: Tensor) -> tuple[float, int]:
    """How far several passes (P, N, C) are apart: largest gap of normalised logits, and images whose prediction changes."""
    outputs = outputs.nan_to_num()  # what is not finite is another gate's
    normalised = outputs / (outputs.norm(dim=2, keepdim=True) + 1e-10)
    gap = float(torch.stack([(normalised - one).norm(dim=2).amax() for one in normalised]).amax())
    predictions = outputs.argmax(2)
    return gap, int((predictions != predictions[0]).any(0).sum())


def gradient_gate(
    classifier: ImageClassifier, images: Tensor, labels: Tensor, threat: Threat, generator: torch.Generator
) -> Finding:
    """Whether the margin's gradient at the images and at random starts is there.

    The margin, not cross-entropy: where softmax rounds to 0 and 1 the latter vanishes although the network has a gradient
    (which the gates on the logits' scale look at).
    """
    bad = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for at in (images, threat.project(threat.random_start(images, generator), images)):
        gradient = input_gradient(classifier, at, labels).flatten(1)
        bad |= (gradient == 0).all(1) | ~gradient.isfinite().all(1)
    return count_finding(bad, GRADIENT, "zero or non-finite gradient")


def input_gradient(classifier: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient (N, ...) of the margin."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(WithGradient(classifier)(images), labels).sum(), images)
    return gradient


@torch.no_grad()
def noise_gates(
    classifier: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    generator: torch.Generator,
) -> tuple[Finding, Finding]:
    """Whether the margin stays where it is under noise of radius eps / 100, and whether it moves as its gradient foretells.

    The second is a gradient check by random differences: it sees a backward pass that is not the network's own, as a branch
    cut off by `detach` or a stand-in for a rounding. Attacks follow that one, and no other gate compares the two. Where
    the small noise does not agree (it may lie below a rounding of pixels that is harmless) noise of eps / 10 decides.

    At the images, where attacks go, and where decisions change: a network whose prediction hangs on what its logits do not
    tell before it changes is smooth everywhere else. The worst place counts.
    """
    stable, slope = [], []
    # Two logits are level where the decision changes: their spread is no unit there, as that of most images is.
    least = float(_spread(classifier(images)).median()) if len(classifier.head_weight) == 2 else 0.0
    places = [
        ("at the images", images, labels),
        ("at random starts", threat.project(threat.random_start(images, generator), images), labels),
    ]
    boundary, predictions = boundary_points(classifier, images)
    if len(boundary):
        places.append(("where decisions change", boundary, predictions))
    for place, points, classes in places:
        moved, foretold, comparable = _under_noise(classifier, points, classes, threat, generator, NOISE_RADIUS, least)
        each = moved.abs().mean(0)
        change = float(each.mean())
        words = f"mean {change:.2g}, worst image {float(each.amax()):.2g} of the logits' spread, {place}"
        stable.append(Finding(change, change <= STABLE.limit, words))
        found = _slope_finding(moved, foretold, comparable, f"eps / 100 {place}")
        if found.passed is not True:
            wider = _under_noise(classifier, points, classes, threat, generator, WIDER_RADIUS, least)
            found = min(found, _slope_finding(*wider, f"eps / 10 {place}"), key=lambda finding: _measured(finding, math.inf))
        slope.append(found)
    return max(stable, key=lambda finding: _measured(finding, 0)), max(slope, key=lambda finding: _measured(finding, -1))


def _measured(finding: Finding, otherwise: float) -> float:
    return otherwise if finding.measured is None else finding.measured


def boundary_points(classifier: ImageClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Points on the way from each image to one of another prediction, as near as float32 comes to where its own ends.

    Returns:
        Points (M, ...) and the predictions (M,) that end there, one for each image; none where all predictions are the same.
    """
    predictions = classifier(images).argmax(1)
    other = predictions[:, None] != predictions
    if not bool(other.any()):
        return images[:0], predictions[:0]
    # The next one in the batch, so that they do not all go to the same.
    count = len(images)
    ahead = (torch.arange(count, device=images.device) - torch.arange(count, device=images.device)[:, None]) % count
    goal = images[torch.where(other, ahead, count).argmin(1)]
    inside, outside = images, goal
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        same = per_image(classifier(middle).argmax(1) == predictions, images)
        inside, outside = torch.where(same, middle, inside), torch.where(same, outside, middle)
    return inside, predictions


def _under_noise(
    classifier: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    generator: torch.Generator,
    radius: float,
    least: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """How the margin moves under noise of that share of eps, and what the gradient foretells, both (NOISES, N).

    In units of the logits' spread, or of `least` where that is smaller. The third, (N,), says where there is a gradient and a
    move that float32 can tell.
    """
    logits = classifier(images)
    spread = _spread(logits).clamp_min(max(least, torch.finfo(logits.dtype).tiny))
    here, gradient = margin(logits, labels), input_gradient(classifier, images, labels)
    moved, foretold = [], []
    for _ in range(NOISES):
        near = threat.random_start(images, generator, radius).clamp(0, 1)
        moved.append((margin(classifier(near), labels) - here) / spread)
        foretold.append((gradient * (near - images)).flatten(1).sum(1) / spread)
    changes, slopes = torch.stack(moved), torch.stack(foretold)
    within_rounding = torch.maximum(changes.abs(), slopes.abs()).amax(0) * spread <= ROUNDING * logits.abs().amax(1)
    blocked = (slopes == 0).all(0) | ~slopes.isfinite().all(0)  # which is the gradient gate's
    return changes, slopes, ~(within_rounding | blocked)


def _spread(logits: Tensor) -> Tensor:
    return logits.amax(1) - logits.amin(1)


def _slope_finding(moved: Tensor, foretold: Tensor, comparable: Tensor, radius: str) -> Finding:
    """One minus the correlation, about 0, of what the gradient foretells with what happens: the mean over the images."""
    moved, foretold = moved[:, comparable].double(), foretold[:, comparable].double()
    if not moved.numel():
        return undecided("no image has a gradient and a margin that moves by more than float32's rounding")
    tiny = torch.finfo(torch.float64).tiny
    agreement = (moved * foretold).sum(0) / (moved.norm(dim=0) * foretold.norm(dim=0)).clamp_min(tiny)
    gap = 1 - float(agreement.mean())
    words = f"correlation {1 - gap:.2f} under noise of {radius}, worst image {float(agreement.amin()):.2f}"
    return Finding(gap, gap <= SLOPE.limit, words)
