"""Which known-bad models are audited, with what effort, and the gates that each has to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import known_bad
from torch import Tensor

from aalp.evaluation.bench import Effort
from aalp.models.classifier import Classifier

EFFORT = Effort(steps=60, restarts=5, queries=200, stand_in_steps=60, adaptive_steps=30)
"""Less than the default of what only takes time."""

FEWER_STEPS = dataclasses.replace(EFFORT, steps=40)
"""Enough against a network that is not robust."""

BLOCKED = {
    "gradient exists",
    "unbounded attack wins",
    "white box beats random noise",
    "white box beats transfer",
    "white box beats black box",
}
SCALE = {"margin beats cross-entropy only a little", "logit scale"}

# Name: (which honest run, what is done to it given the audited images, changed effort, gates that have to fail).
KNOWN_BAD: dict[str, tuple[str, Callable[[Classifier, Tensor], Classifier], Effort, set[str]]] = {
    "quantised input": ("standard", lambda run, _: known_bad.quantised_input(run), FEWER_STEPS, BLOCKED | {"stable loss"}),
    "non-differentiable step": ("standard", lambda run, _: known_bad.without_graph(run), FEWER_STEPS, BLOCKED),
    "a part cut off": ("at", lambda run, _: known_bad.part_cut_off(run), EFFORT, {"gradient is the slope"}),
    "logits x 1000": ("at", lambda run, _: known_bad.huge_logits(run), EFFORT, SCALE),
    "clean-trained, logits x 1000": ("standard", lambda run, _: known_bad.huge_logits(run), FEWER_STEPS, SCALE),
    "probabilities": ("at", lambda run, _: known_bad.probabilities(run), EFFORT, {"output is logits"}),
    "noise at inference": ("at", lambda run, _: known_bad.noisy(run), EFFORT, {"deterministic"}),
    "dropout left on": ("at", lambda run, _: known_bad.dropout_left_on(run), EFFORT, {"deterministic"}),
    "batch statistics": ("at", lambda run, _: known_bad.batch_statistics(run), EFFORT, {"deterministic"}),
    "keeps images it is shown": ("standard", lambda run, _: known_bad.keeping(run), EFFORT, {"deterministic"}),
    "keeps images it is shown later": (
        "standard",
        lambda run, _: known_bad.keeping_later(run),
        FEWER_STEPS,
        {"deterministic"},
    ),
    "gradient sign flipped": (
        "standard",
        lambda run, _: known_bad.flipped_gradient(run),
        FEWER_STEPS,
        (BLOCKED - {"gradient exists"}) | {"gradient is the slope"},
    ),
    "saturating staircase": (
        "standard",
        lambda run, _: known_bad.saturated(run),
        FEWER_STEPS,
        BLOCKED | {"gradient is the slope"},
    ),
    "clean-trained, jumping logits": (
        "standard",
        lambda run, _: known_bad.jumping(run),
        FEWER_STEPS,
        {"stable loss", "gradient is the slope"},
    ),
    "jumping logits": (
        "at",
        lambda run, _: known_bad.jumping(run),
        EFFORT,
        {"stable loss", "gradient is the slope", "no silent success"},
    ),
    "cancelling features": (
        "standard",
        lambda run, _: known_bad.cancelling(run),
        FEWER_STEPS,
        {"gradient exists", "unbounded attack wins", "adaptive attack"},
    ),
    "snaps back to known images": (
        "standard",
        lambda run, images: known_bad.remembering(run, images, 0.15),
        FEWER_STEPS,
        {"gradient exists", "stable loss", "unbounded attack wins", "accuracy never rises with eps"},
    ),
    "one network decides, another gives the slope": (
        "at",
        known_bad.decided_by_another,
        EFFORT,
        {"stable loss", "gradient is the slope"},
    ),
    "knows where attacks end": (
        "at",
        lambda run, images: known_bad.knowing_corners(run, images, 0.2),
        EFFORT,
        {"accuracy never rises with eps"},
    ),
    "weak attack: 3 small steps": (
        "at",
        lambda run, _: run,
        dataclasses.replace(EFFORT, steps=3, step_size=0.1, restarts=20),
        {"attack converged", "iterative beats single step", "more restarts"},
    ),
    "weak attack: 3 longer steps": (
        "at",
        lambda run, _: run,
        dataclasses.replace(EFFORT, steps=3, step_size=0.2, restarts=20),
        {"attack converged", "iterative beats single step", "more steps"},
    ),
}


AT_THE_LIMIT = {
    "a part cut off": {"white box beats random noise", "white box beats transfer", "white box beats black box"},
    "gradient sign flipped": {"iterative beats single step", "adaptive attack"},
    "jumping logits": {"more restarts", "adaptive attack"},
    "saturating staircase": {"stable loss", "more restarts", "adaptive attack"},
    "one network decides, another gives the slope": {
        "margin beats cross-entropy only a little",
        "white box beats random noise",
        "white box beats transfer",
        "white box beats black box",
    },
    "weak attack: 3 small steps": {"more steps"},
    "weak attack: 3 longer steps": {"more restarts"},
}
"""Gates not made for a model, which it comes so near to failing that a single image decides: neither is asked for."""
