"""The gates that come before any attack, in their order: the cheap ones for every evaluation, all of them for the audit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from aalp.evaluation import gates as g
from aalp.evaluation.findings import NOT_FINITE, Finding, Gate, GateResult, undecided
from aalp.evaluation.model_gates import deterministic_gate, gradient_gate, logits_gate, noise_gates
from aalp.method.pgd import evaluating
from aalp.method.precision import full_precision
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.models.copies import copied
from aalp.seeding import derive_seed

CHEAP_IMAGES = 64
"""Images that the gates on the model itself look at, whatever the size of a batch."""

RANDOM = "not run: the model does not answer the same twice, so no attack's outcome means anything"
NO_LOGITS = "not run: the outputs are not finite"

Step = Iterator[tuple[Gate, Finding]]


def cheap_gates(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int = 0,
    steady: Callable[[], Finding] | None = None,
) -> list[GateResult]:
    """The gates that every evaluation runs, on at most 64 images: logits, determinism, gradient.

    Before the model sees any other image of the evaluation: what it keeps of those it could not tell from new ones.

    Args:
        steady: see `determinism`; for who asks it again after the attacks.
    """
    images, labels = images[:CHEAP_IMAGES].float(), labels[:CHEAP_IMAGES]
    steady = steady or determinism(classifier, images, threat, seed)
    with evaluating(classifier), full_precision(), torch.no_grad():
        # They come first; to ask for the next gate would run it.
        count = sum(gate.cheap for gate in g.GATES)
        return list(timed(islice(model_gates(classifier, steady, images, labels, threat, seed), count)))


@torch.no_grad()
def determinism(classifier: Classifier, images: Tensor, threat: Threat, seed: int = 0) -> Callable[[], Finding]:
    """The gate on determinism, to be asked before the attacks and after them.

    To be made before the model sees an image: a copy answers now on points near the images.
    """
    with evaluating(classifier), full_precision():
        near = threat.project(threat.random_start(images, _generator(images, "near", seed)), images)
        expected = copied(classifier, images[:2])(near)

    def steady() -> Finding:
        with evaluating(classifier), full_precision():
            return deterministic_gate(classifier, images, near, expected)

    return steady


def steady_later(results: list[GateResult], later: Finding) -> list[GateResult]:
    """The results with what determinism came out as after the attacks, where it failed only then: it kept what it was shown,
    or began to answer at random, after so many images."""
    finding = replace(later, detail=f"after the attacks: {later.detail}")
    return [
        replace(result, finding=finding) if result.gate == g.DETERMINISTIC and result.passed and not later.passed else result
        for result in results
    ]


def _generator(images: Tensor, purpose: str, seed: int) -> torch.Generator:
    return torch.Generator(images.device).manual_seed(derive_seed("audit", purpose, seed))


def timed(steps: Step, clock: Callable[[], float] = time.perf_counter) -> Iterator[GateResult]:
    """Each finding with the time that it took since the one before."""
    before = clock()
    for gate, finding in steps:
        now = clock()
        yield GateResult(gate, finding, now - before)
        before = now


def model_gates(
    classifier: Classifier, steady: Callable[[], Finding], images: Tensor, labels: Tensor, threat: Threat, seed: int
) -> Step:
    """The gates on the model itself, in their order; one that an earlier one leaves without sense is undecided.

    Args:
        steady: see `determinism`.
        images: those that they look at, with their labels (N,).
    """
    logits = logits_gate(classifier, images)
    yield g.LOGITS, logits
    if logits.detail.startswith(NOT_FINITE):
        for gate in (g.DETERMINISTIC, g.GRADIENT, g.STABLE, g.SLOPE):
            yield gate, undecided(NO_LOGITS)
        return
    deterministic = steady()
    yield g.DETERMINISTIC, deterministic
    if not deterministic.passed:
        for gate in (g.GRADIENT, g.STABLE, g.SLOPE):
            yield gate, undecided(RANDOM)
        return
    yield g.GRADIENT, gradient_gate(classifier, images, labels, threat, _generator(images, "gradient", seed))
    stable, slope = noise_gates(classifier, images, labels, threat, _generator(images, "stable", seed))
    yield g.STABLE, stable
    yield g.SLOPE, slope
