"""The gates of the audit: what each one asks, when it passes, what its failure means, and what to do about it.

Sources: A = AutoAttack's checks (arXiv 2003.01690), C = Carlini et al. (arXiv 1902.06705), I = Pintor et al., Indicators
of Attack Failure (arXiv 2106.09947), M = Mosbach et al. (arXiv 1810.12042), T = Tramer et al. (arXiv 2002.08347). A limit
that no source gives is marked "ours"; docs/audit.md tells how it was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aalp.evaluation.robustness import wilson_interval

FEWEST_RIGHT = 30
"""With fewer images that are right clean, shares of broken images are too rough to decide a gate (ours)."""

NOT_FINITE = "outputs that are not finite"


@dataclass(frozen=True)
class Gate:
    """A gate.

    Attributes:
        source: letters of the sources above; "ours" where the limit is.
        limit: the largest value that passes, in `unit`.
        unit: "points" (percent of all images), "images", or "" for a plain number.
        rule: the pass rule, with its number.
        meaning: what a failure means.
        remedy: what to do then.
        cheap: run by every evaluation as well.
        optional: needs something that not everybody has; not run without it, which leaves the verdict as it is.
    """

    name: str
    source: str
    limit: float
    unit: str
    rule: str
    meaning: str
    remedy: str
    cheap: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Finding:
    """What a gate came out as.

    Attributes:
        measured: in the gate's unit; None where nothing could be measured.
        passed: None if it could not be decided, or was not run.
        detail: one line of what was seen.
    """

    measured: float | None
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class GateResult:
    """A gate with its finding and its wall time."""

    gate: Gate
    finding: Finding
    seconds: float = 0.0

    @property
    def passed(self) -> bool | None:
        return self.finding.passed

    def record(self) -> dict[str, Any]:
        """As it stands in a record."""
        gate, finding = self.gate, self.finding
        return {
            "name": gate.name,
            "source": gate.source,
            "passed": finding.passed,
            "measured": finding.measured,
            "limit": gate.limit,
            "unit": gate.unit,
            "rule": gate.rule,
            "meaning": gate.meaning,
            "remedy": gate.remedy,
            "detail": finding.detail,
            "optional": gate.optional,
            "seconds": self.seconds,
        }


def share_finding(count: int, total: int, gate: Gate, what: str) -> Finding:
    """The finding on a share of images that should not be above the gate's limit, in points.

    It passes up to the limit, and always with a single image. It fails if the whole 95 % Wilson interval of the share
    lies above the limit. In between it is undecided: the excess is within what the draw of the images explains.

    Args:
        count: images that count against the model.
        total: all images.
        what: the detail's words for the count.
    """
    share = count / total
    low = wilson_interval(count, total)[0]
    passed: bool | None = None
    if count <= max(1.0, gate.limit / 100 * total + 1e-9):
        passed = True
    elif low > gate.limit / 100:
        passed = False
    detail = f"{what}: {count} of {total} images"
    return Finding(100 * share, passed, detail if passed is not None else f"{detail}, too few images to decide")


def gain_finding(before: Tensor, after: Tensor, gate: Gate, what: str) -> Finding:
    """The finding on how many points of accuracy a change of the attack gains: what stood before minus what stands after.

    Args:
        before, after: (N,) bool, which images stand under the attack as it was and as it is changed.
    """
    gained = int(before.sum()) - int(after.sum())
    finding = share_finding(max(0, gained), len(before), gate, what)
    accuracies = f"{what}: accuracy {_percent(before)} -> {_percent(after)}"
    undecided = "" if finding.passed is not None else ", too few images to decide"
    return Finding(100 * gained / len(before), finding.passed, accuracies + undecided)


def rise_finding(weaker: Tensor, stronger: Tensor, gate: Gate, what: str) -> Finding:
    """The finding on an accuracy that must not rise when the attack becomes stronger, on the same images.

    It passes up to the limit, and always with a single image. It fails beyond that if a sign test says that the rise is
    no accident: among the images on which the two differ, the 95 % Wilson interval of the share that speaks against the
    model lies above one half. In between it is undecided.

    Args:
        weaker, stronger: (N,) bool, which images stand under the weaker and under the stronger attack.
    """
    against, other = int((stronger & ~weaker).sum()), int((weaker & ~stronger).sum())
    rise, total = against - other, len(weaker)
    passed: bool | None = None
    if rise <= max(1.0, gate.limit / 100 * total + 1e-9):
        passed = True
    elif wilson_interval(against, against + other)[0] > 0.5:
        passed = False
    detail = f"{what}: accuracy {_percent(weaker)} -> {_percent(stronger)}"
    return Finding(100 * rise / total, passed, detail if passed is not None else f"{detail}, too few images to decide")


def _percent(standing: Tensor) -> str:
    return f"{float(standing.double().mean()):.1%}"


def undecided(why: str) -> Finding:
    """A gate that could not be decided, or was not run."""
    return Finding(None, None, why)


def count_finding(bad: Tensor, gate: Gate, what: str) -> Finding:
    """The finding on images (N, bool) none of which should be bad; a single one is forgiven."""
    finding = share_finding(int(bad.sum()), len(bad), gate, what)
    return Finding(float(torch.count_nonzero(bad)), finding.passed, finding.detail)


_MASKED = "do not trust figures of gradient attacks on this model; "

LOGITS = Gate(
    "output is logits",
    "A",
    0,
    "images",
    "no image gives outputs that are not finite, and not all of them give a probability distribution",
    "Cross-entropy on probabilities applies the softmax twice and flattens the gradients that attacks follow.",
    "return the last Linear's output without softmax; numbers that are not finite are a bug or an overflow in the model",
    cheap=True,
)
DETERMINISTIC = Gate(
    "deterministic",
    "A",
    1e-4,
    "",
    "5 passes over the same images, whole and in another batching: same predictions, normalised logits at most 1e-4 apart (L2)",
    "The model answers at random, or an answer depends on the batch: attacks aim at one draw and are judged on the next.",
    "take noise and dropout out of inference and use running BatchNorm statistics; else attack the expectation (EOT)",
    cheap=True,
)
GRADIENT = Gate(
    "gradient exists",
    "I, A",
    0,
    "images",
    "no image with a zero or non-finite gradient of the margin at itself or at a random start (one image is forgiven)",
    "Gradient attacks have nothing to follow there and stand still: shattered or vanishing gradients.",
    _MASKED + "attack through a smooth stand-in for the step that blocks the gradient (BPDA), or with queries only (square)",
    cheap=True,
)
STABLE = Gate(
    "stable loss",
    "I, ours",
    0.05,
    "",
    "mean relative change of the margin, in units of the logits' spread, over 100 noises of radius eps / 100 is at most 0.05",
    "The loss jumps at distances far below eps: gradients say nothing about the step that the attack takes.",
    _MASKED + "average gradients over noise, smooth the step that causes the jumps, or attack with queries only (square)",
)
CONVERGED = Gate(
    "attack converged",
    "I",
    0.05,
    "",
    "running-best loss of failed attacks, scaled to [0, 1] per image, moves by at most 0.05 over the last 10 steps (mean)",
    "The attack was stopped while it still made progress: the accuracy under it is too high.",
    "attack with more steps or with larger ones",
)
SILENT = Gate(
    "no silent success",
    "I, ours",
    2,
    "points",
    "at most 2 points of the images stand at the attack's last step after they had been misclassified at an earlier one",
    "The attack found adversarial images and walked past them: the accuracy under it is too high.",
    "count an image as broken if any step broke it; use smaller steps",
)
SINGLE_STEP = Gate(
    "iterative beats single step",
    "C",
    1,
    "points",
    "accuracy under PGD is not above accuracy under FGSM (by more than 1 point and sampling error)",
    "Following the gradient for longer should only help: where it does not, gradients mislead.",
    _MASKED + "look for what makes them point elsewhere than to the boundary; give PGD steps that can cross the ball",
)
MORE_STEPS = Gate(
    "more steps",
    "C, ours",
    3,
    "points",
    "doubling the steps of PGD lowers accuracy by at most 3 points",
    "The attack is too short to judge the model by.",
    "raise the steps until accuracy stops falling, and report that one",
)
RESTARTS = Gate(
    "more restarts",
    "C, M, ours",
    10,
    "points",
    "20 restarts of PGD lower accuracy by at most 10 points",
    "Whether the attack succeeds depends on where it starts: the loss around the images is rugged.",
    "report the worst case over many restarts, or AutoAttack",
)
UNBOUNDED = Gate(
    "unbounded attack wins",
    "C",
    1,
    "points",
    "with the whole pixel range allowed, at most 1 point of the images stand under PGD on cross-entropy or on the margin",
    "Without a bound any image can be turned into another: an attack that does not manage has no useful gradient.",
    _MASKED + "find out where the attack stops and why",
)
LARGER_EPS = Gate(
    "accuracy never rises with eps",
    "C",
    1,
    "points",
    "accuracy under PGD rises nowhere along eps/2, eps, 2 eps (by more than 1 point and sampling error)",
    "A larger ball holds the smaller one: an attack that does worse in it follows gradients that mislead.",
    _MASKED + "give the attack more steps and restarts, and look at the loss along its path",
)
MARGIN = Gate(
    "margin beats cross-entropy only a little",
    "ours",
    7.5,
    "points",
    "accuracy under PGD on cross-entropy is at most 7.5 points above that under PGD on the margin",
    "Cross-entropy's gradient vanishes or misleads where the margin's does not, as with very large logits.",
    "report the margin attack (cw-K) or AutoAttack, never PGD on cross-entropy alone",
)
SCALE = Gate(
    "logit scale",
    "ours",
    5,
    "points",
    "PGD on logits divided by their spread (largest minus smallest becomes 10) lowers accuracy by at most 5 points",
    "The size of the logits hides the gradient: probabilities round to 0 and 1.",
    "attack on rescaled logits or on the margin; report AutoAttack",
)
ADAPTIVE = Gate(
    "adaptive attack",
    "T, ours",
    3,
    "points",
    "attacks that know AALP (pairing distance; high-contribution features; each through the Guided Dropout mask too) lower "
    "accuracy by at most 3 points below all other white-box attacks",
    "The defence stops the attacks it was trained against, not one that is made for it.",
    "report the adaptive attacks' accuracy; what they gain is not robustness",
)
NOISE = Gate(
    "white box beats random noise",
    "C",
    0.2,
    "points",
    "100 random points on the ball's surface break at most 0.2 points of the images that the white-box attacks did not",
    "Blind guessing finds what the gradient does not: the gradients are masked.",
    _MASKED + "attack with queries only (square) and with the full AutoAttack",
)
TRANSFER = Gate(
    "white box beats transfer",
    "C",
    1,
    "points",
    "images made on a small stand-in trained on the model's answers break at most 1 point that the white-box attacks did not",
    "Another model's gradients serve the attack better than the model's own: those are masked.",
    _MASKED + "attack with transferred images and with queries only (square) as well",
)
SQUARE = Gate(
    "white box beats black box",
    "A, C",
    0.2,
    "points",
    "Square, after all white-box attacks, lowers accuracy by at most 0.2 points (one image is forgiven)",
    "An attack without gradients finds what those with gradients do not: the gradients are masked, or the attacks too weak.",
    _MASKED + "run Square with more queries, look for the step that hides the gradient, attack adaptively",
)
AUTOATTACK_GAP = Gate(
    "PGD to AutoAttack gap",
    "ours",
    2,
    "times",
    "the drop from pgd-20 to AutoAttack is at most 2 times that of the reference (an `at` model of the same recipe), plus "
    "sampling error",
    "PGD flatters this model more than it flatters plain adversarial training: gradients are partly masked.",
    "report AutoAttack only",
    optional=True,
)

GATES = (
    LOGITS,
    DETERMINISTIC,
    GRADIENT,
    STABLE,
    CONVERGED,
    SILENT,
    SINGLE_STEP,
    MORE_STEPS,
    RESTARTS,
    UNBOUNDED,
    LARGER_EPS,
    MARGIN,
    SCALE,
    ADAPTIVE,
    NOISE,
    TRANSFER,
    SQUARE,
    AUTOATTACK_GAP,
)
"""All gates, in the order of the table."""
