"""The gradient-masking audit: runs the gates of `gates.py` on a classifier and gives one verdict."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from aalp.data.arrays import as_tensors, largest_class
from aalp.data.loaders import Tick
from aalp.data.split import as_float
from aalp.distributed import ALONE, Ranks
from aalp.errors import OptionError
from aalp.evaluation import gates as g
from aalp.evaluation.attack_gates import converged_gate, silent_gate
from aalp.evaluation.attacks import check_any_number
from aalp.evaluation.autoattack_gap import DropUnderAutoAttack, autoattack_gap_gate
from aalp.evaluation.bench import QUICK, THOROUGH, Bench, Effort, Path
from aalp.evaluation.findings import (
    FEWEST_RIGHT,
    Finding,
    Gate,
    GateResult,
    gain_finding,
    rise_finding,
    share_finding,
    undecided,
)
from aalp.evaluation.first_gates import (
    CHEAP_IMAGES,
    NO_LOGITS,
    RANDOM,
    Step,
    determinism,
    model_gates,
    steady_later,
    timed,
)
from aalp.evaluation.journal import Journal
from aalp.evaluation.verdict import Audit
from aalp.method.losses import cross_entropy, margin, misclassified
from aalp.method.pgd import evaluating
from aalp.method.precision import full_precision
from aalp.method.threat import Threat, check_threat
from aalp.models.classifier import Classifier, check_classifier
from aalp.models.copies import copied
from aalp.shown import in_percent

NO_CLAIM = 1 / 3
"""Where plain PGD leaves at most this share of the right images, and all attacks together no more than a constant answer
gets, no robustness is claimed that could be overstated (ours)."""


@torch.inference_mode(False)
def audit(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat | None = None,
    *,
    thorough: bool = False,
    effort: Effort | None = None,
    own: DropUnderAutoAttack | None = None,
    reference: DropUnderAutoAttack | None = None,
    batch_size: int = 256,
    seed: int = 0,
    tick: Tick = lambda attack, done, total: None,
    journal: Journal | None = None,
    ranks: Ranks = ALONE,
) -> Audit:
    """Look for masked gradients: does the robustness that gradient attacks report hold?

    Float32, evaluation mode. A few minutes on 256 small images without `thorough`.

    Args:
        classifier: on the device to run on.
        images: (N, channels, height, width) uint8 or in [0, 1].
        labels: (N,) integers.
        threat: the ball, such as `Linf(8 / 255)`.
        thorough: 200 steps (100 a restart), 1,000 noises and 5,000 queries, for figures that go into a paper.
        effort: how hard to attack instead, to audit an attack's own settings.
        own, reference: evaluations of this model and of an `at` model of the same recipe, for the gate that compares them.
        batch_size: images attacked together; the gates on the model itself take at least 64.
        seed: of the attacks' random starts.
        tick: called before and after each batch of each attack.
        journal: where to keep the batches that are done, and to find those that were done before.
        ranks: processes that share the batches, each of which calls this alike; the findings are those of one process.

    Raises:
        OptionError: threat is missing, or batch_size is below 1.
        ModelError: the classifier is none, or its network does not take any number of images.
        DataError: images or labels are not what they have to be.
    """
    threat = check_threat(threat)
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}: it has to be at least 1")
    check_classifier(classifier)
    images, labels = as_tensors(images, labels, classifier.num_classes, "the audit")
    started = time.perf_counter()
    device = classifier.head_weight.device
    images, labels = as_float(images).to(device), labels.to(device)
    effort = effort or (THOROUGH if thorough else QUICK)
    with evaluating(classifier), full_precision(), torch.no_grad():
        few = max(batch_size, CHEAP_IMAGES)  # on one or two images no share of them means anything
        check_any_number(copied(classifier, images[:2]), images)  # the classifier itself is not shown an image yet
        steady = determinism(classifier, images[:few], threat, seed)
        right = ranks.from_main(lambda: _right(classifier, images, labels, batch_size).cpu()).to(device)
        bench = Bench(classifier, images, labels, threat, right, effort, seed, batch_size, tick, journal, ranks)

        def clock() -> float:
            return time.perf_counter() + bench.earlier_seconds

        def on_model() -> list[GateResult]:
            return list(timed(model_gates(classifier, steady, images[:few], labels[:few], threat, seed), clock))

        # From one process: a model that answers at random would send them on different ways.
        results = ranks.from_main(on_model)
        why_not = _why_not_attack(results, right)
        gap = list(timed(iter([(g.AUTOATTACK_GAP, autoattack_gap_gate(own, reference))]), clock))
        if why_not is None:
            attacked = [*timed(_attack_gates(bench), clock), *gap]
            results = steady_later(results, ranks.from_main(steady))
            results += _excused(attacked, bench) if _claims_nothing(bench) else attacked
        else:
            missing = [gate for gate in g.GATES[len(results) :] if not gate.optional]
            results += [*(GateResult(gate, undecided(why_not)) for gate in missing), *gap]
    return Audit(
        gates=results,
        images=len(images),
        clean=float(right.double().mean()),
        robust=float(bench.worst().double().mean()) if why_not is None else None,
        majority=largest_class(labels),
        seconds=clock() - started,
    )


def _right(classifier: Classifier, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    right = []
    for batch, truth in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
        right.append(~misclassified(classifier(batch), truth))
        classifier.checked_features(batch)
    return torch.cat(right)


def _why_not_attack(results: list[GateResult], right: Tensor) -> str | None:
    """Why nothing can be learnt from attacks, if so."""
    passed = {result.gate.name: result.passed for result in results}
    if passed[g.DETERMINISTIC.name] is False:
        return RANDOM
    if passed[g.DETERMINISTIC.name] is None:
        return NO_LOGITS
    if int(right.sum()) < FEWEST_RIGHT:
        return f"images that are right clean: {int(right.sum())}, where {FEWEST_RIGHT} are needed: give more (--images)"
    return None


def _claims_nothing(bench: Bench) -> bool:
    """Whether plain PGD finds no robustness that another attack could take away, as on ordinarily trained models.

    On those cross-entropy saturates, and stronger attacks do gain: down from a figure that nobody would call robust.
    """
    worst = float(bench.worst().double().mean())
    return int(bench.standing["pgd"].sum()) <= NO_CLAIM * int(bench.right.sum()) and worst <= largest_class(bench.labels)


def _excused(results: list[GateResult], bench: Bench) -> list[GateResult]:
    accuracy = float(bench.standing["pgd"].double().mean())
    words = f"; nothing is overstated: plain pgd leaves {in_percent(accuracy)}%"
    return [
        result
        if result.passed or (result.gate.optional and result.passed is None)
        else replace(result, finding=replace(result.finding, passed=True, detail=result.finding.detail + words))
        for result in results
    ]


def _attack_gates(bench: Bench) -> Step:
    total, right = len(bench.labels), bench.right
    paths: list[Path] = []
    longer: list[Path] = []
    base = bench.run("pgd", bench.pgd(cross_entropy, paths=paths), right, start="base", paths=paths)
    twice = bench.pgd(cross_entropy, 2 * bench.effort.steps, paths=longer)
    double = bench.run("pgd with twice the steps", twice, right, start="base", paths=longer)
    yield g.CONVERGED, converged_gate(paths, longer)
    yield g.SILENT, silent_gate(paths, total)
    single = bench.run("fgsm", bench.fgsm, right)
    yield g.SINGLE_STEP, rise_finding(single, base, g.SINGLE_STEP, "fgsm -> pgd")
    yield g.MORE_STEPS, gain_finding(base, double, g.MORE_STEPS, "twice the steps")
    yield g.RESTARTS, gain_finding(base, bench.restarts(base), g.RESTARTS, f"{bench.effort.restarts} restarts")
    yield g.UNBOUNDED, _unbounded(bench)
    yield g.LARGER_EPS, _larger_eps(bench, base)
    on_margin = bench.run("pgd on the margin", bench.pgd(margin), right, start="base")
    yield g.MARGIN, gain_finding(base, on_margin, g.MARGIN, "cross-entropy -> margin")
    rescaled = bench.run("pgd on rescaled logits", bench.rescaled, right, start="base")
    yield g.SCALE, gain_finding(base, rescaled, g.SCALE, "logits as they are -> rescaled")
    known = bench.worst()
    adaptive = bench.adaptive(known)
    white_box = bench.worst()
    gains = ", ".join(f"{name.removeprefix('adaptive ')} {int((known & ~after).sum())}" for name, after in adaptive.items())
    yield g.ADAPTIVE, gain_finding(known, white_box, g.ADAPTIVE, f"broken: {gains}")
    yield g.NOISE, _beyond(white_box, bench.noise(white_box), g.NOISE)
    yield g.TRANSFER, _beyond(white_box, bench.transferred(white_box), g.TRANSFER)
    yield g.SQUARE, _beyond(white_box, bench.square(white_box), g.SQUARE)


def _beyond(white_box: Tensor, after: Tensor, gate: Gate) -> Finding:
    return share_finding(int((white_box & ~after).sum()), len(white_box), gate, "broken by it alone")


def _unbounded(bench: Bench) -> Finding:
    standing = bench.right
    for name, loss in (("cross-entropy", cross_entropy), ("margin", margin)):
        radius, steps = bench.whole_range(), bench.effort.adaptive_steps
        standing = bench.at_eps(radius, loss, f"unbounded pgd on {name}", standing, steps)
    return share_finding(int(standing.sum()), len(bench.labels), g.UNBOUNDED, "stand without a bound")


def _larger_eps(bench: Bench, base: Tensor) -> Finding:
    eps = bench.threat.eps
    half, double = (
        bench.at_eps(radius, cross_entropy, f"pgd at eps {radius:.3g}", bench.right)
        for radius in (eps / 2, min(2 * eps, bench.whole_range()))
    )
    inside = bench.run("pgd inside the ball", bench.inside, bench.right, start="base")
    steps = [
        rise_finding(half, base, g.LARGER_EPS, "eps/2 -> eps"),
        rise_finding(inside, base, g.LARGER_EPS, "0.9 eps around points near the images -> eps"),
        rise_finding(base, double, g.LARGER_EPS, "eps -> 2 eps"),
    ]
    # The worst of them: failed before undecided before passed.
    return max(steps, key=lambda step: (step.passed is False, step.passed is None, step.measured or 0.0))
