"""The gates of the audit: what each one asks, when it passes, what its failure means, and what to do about it.

Sources: A = AutoAttack's checks (arXiv 2003.01690), C = Carlini et al. (arXiv 1902.06705), I = Pintor et al., Indicators
of Attack Failure (arXiv 2106.09947), M = Mosbach et al. (arXiv 1810.12042), T = Tramer et al. (arXiv 2002.08347). A limit
that no source gives is marked "ours"; docs/audit.md tells how it was chosen.
"""

from __future__ import annotations

from aalp.evaluation.findings import Gate

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
    "5 passes over the same images, whole, in another batching and with a gradient, and points near them as a copy answers "
    "that was not shown the images, before the attacks and after them: same predictions, normalised logits at most 1e-4 "
    "apart (L2)",
    "The model answers at random, or an answer depends on the batch or on images seen before: attacks aim at one draw and are "
    "judged on the next.",
    "take noise and dropout out of inference, use running BatchNorm statistics, keep nothing of images; else attack the "
    "expectation (EOT)",
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
    "mean relative change of the margin, in units of the logits' spread, over 100 noises of radius eps / 100 is at most 0.05: "
    "at the images, at random starts, and where decisions change on the way to another image",
    "The loss jumps at distances far below eps: gradients say nothing about the step that the attack takes.",
    _MASKED + "average gradients over noise, smooth the step that causes the jumps, or attack with queries only (square)",
)
SLOPE = Gate(
    "gradient is the slope",
    "ours",
    0.2,
    "",
    "how the margin moves under 100 noises of radius eps / 100, or else eps / 10, correlates with what its gradient foretells: "
    "at least 0.8 at each of those three places (mean over images; 1 minus it is measured)",
    "The backward pass is not that of the forward pass: a part is cut off (detach, no_grad), altered, or a stand-in for a step "
    "without gradient. Attacks follow it and miss what it leaves out.",
    _MASKED + "give the network its own gradient; where a step has none, try several stand-ins, and queries only (square)",
)
CONVERGED = Gate(
    "attack converged",
    "I",
    0.05,
    "",
    "running-best loss of failed attacks, scaled to [0, 1] per image, moves by at most 0.05 over the last 10 steps "
    "(mean), or does so with twice the steps",
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
    20,
    "points",
    "20 restarts of PGD lower accuracy by at most 20 points",
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
    "accuracy under PGD rises nowhere along eps/2, eps, 2 eps, nor from balls of 0.9 eps around points near the images to eps "
    "(by more than 1 point and sampling error)",
    "A larger ball holds the smaller one: an attack that does worse in it follows gradients that mislead, or the model knows "
    "where attacks end.",
    _MASKED + "give the attack more steps and restarts, and look at the loss along its path",
)
MARGIN = Gate(
    "margin beats cross-entropy only a little",
    "ours",
    12,
    "points",
    "accuracy under PGD on cross-entropy is at most 12 points above that under PGD on the margin",
    "Cross-entropy's gradient vanishes or misleads where the margin's does not, as with very large logits.",
    "report the margin attack (cw-K) or AutoAttack, never PGD on cross-entropy alone",
)
SCALE = Gate(
    "logit scale",
    "ours",
    12,
    "points",
    "PGD on logits divided by their spread (largest minus smallest becomes 10) lowers accuracy by at most 12 points",
    "The size of the logits hides the gradient: probabilities round to 0 and 1.",
    "attack on rescaled logits or on the margin; report AutoAttack",
)
ADAPTIVE = Gate(
    "adaptive attack",
    "T, ours",
    5,
    "points",
    "attacks that know AALP (pairing distance; high-contribution features; each through the Guided Dropout mask too) lower "
    "accuracy by at most 5 points below all other white-box attacks",
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
    SLOPE,
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
