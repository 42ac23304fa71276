"""What --dry-run prints: the options as YAML that --config takes, and what the command would cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from aalp.commands.config import device, to_plain
from aalp.commands.console import print_out
from aalp.data.split import Split, as_float
from aalp.evaluation.autoattack import STANDARD
from aalp.evaluation.bench import Effort
from aalp.evaluation.foreign_attacks import is_foreign
from aalp.evaluation.model_gates import WithGradient
from aalp.evaluation.targets import MOST_TARGETS
from aalp.method.pgd import evaluating, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier

PROBE_STEPS = 10
Passes = tuple[int, int]
"""Passes of one image through a network for an attack: forward and backward, and forward alone."""


def evaluation_cost(
    classifier: Classifier, split: Split, threat: Threat, attacks: Sequence[str], count: int, batch_size: int, trained: bool
) -> dict[str, Any]:
    """What the attacks of an evaluation would cost, from one batch under PGD with ten steps.

    Args:
        split: images of the kind, at least one.
        count: how many will be attacked.
        attacks: their names; those that are not ours are named as not estimated.
        trained: whether the classifier is the one that will be attacked. If so, only images that it gets right are counted,
            and for AutoAttack's later parts those that stand after the probe; else every image, for all is an upper bound.
    """
    gradient, forward, right, stands = _probe(classifier, split, threat, batch_size)
    share = {False: 1.0, True: 1.0} if not trained else {False: right, True: stands}
    minutes = {}
    # How many passes somebody else's attack takes, it alone knows.
    unknown = [name for name in attacks if is_foreign(name)]
    for name in _parts([name for name in attacks if name not in unknown]):
        backward_passes, forward_passes = attack_passes(name, classifier.num_classes)
        images = count * share[name in STANDARD[1:]]
        minutes[name] = images * (backward_passes * gradient + forward_passes * forward) / 60
    return {
        "images": count,
        "at_most": not trained,
        "minutes": sum(minutes.values()),
        "attacks": minutes,
        "not_estimated": unknown,
        **memory(),
    }


def audit_cost(
    classifier: Classifier, split: Split, threat: Threat, effort: Effort, count: int, batch_size: int
) -> dict[str, Any]:
    """What an audit would cost at most: every attack on every image that is right clean."""
    gradient, forward, right, _ = _probe(classifier, split, threat, batch_size)
    # PGD as it is, with twice the steps, on the margin, rescaled, at eps/2 and 2 eps, inside the ball; restarts; four
    # adaptive attacks, the transferred one and the unbounded one on two losses.
    backward_passes = 8 * effort.steps + effort.restarts * effort.restart_steps + 7 * effort.adaptive_steps
    seconds = count * right * (backward_passes * gradient + (effort.noises + effort.queries) * forward)
    return {"images": count, "at_most": True, "minutes": seconds / 60, **memory()}


def attack_passes(name: str, classes: int) -> Passes:
    """Passes of one image for an attack of `aalp.evaluation.attacks`; all of them, as for an image that stands."""
    targets = min(MOST_TARGETS, classes - 1)
    known = {
        "clean": (0, 1),
        "fgsm": (1, 1),
        "apgd-ce": (101, 1),
        "apgd-t": (101 * targets, targets),
        "fab-t": (100 * targets, 100 * targets),
        "square": (0, 5000),
    }
    return known[name] if name in known else (int(name.rpartition("-")[2]), 1)


def times(cost: Mapping[str, Mapping[str, Any]], runs: int) -> dict[str, dict[str, Any]]:
    """The cost of so many runs like this one, which only their number and the minutes depend on."""
    return {part: {**found, "minutes": found["minutes"] * runs, "runs": runs} for part, found in cost.items()}


def show(config: Mapping[str, Any], cost: Mapping[str, Mapping[str, Any]]) -> None:
    """Print both, as YAML with the cost in comments, and as JSON where that is asked for."""
    plain = to_plain(config)
    lines = [yaml.safe_dump(plain, sort_keys=False).rstrip(), f"# Cost, from {PROBE_STEPS} steps probed on {_device_name()}:"]
    for name, part in cost.items():
        lines.append(f"#   {name}: {_sentence(part)}")
    memory = max(part["memory_gigabytes"] for part in cost.values())
    lines += [f"#   memory: {memory:.2f} GB at the peak of the probe", "# Nothing was written."]
    print_out("\n".join(lines), {"config": plain, "cost": cost, "device": _device_name()})


def _sentence(part: Mapping[str, Any]) -> str:
    minutes = f"{'at most ' if part.get('at_most') else ''}{part['minutes']:.1f} minutes"
    runs = f", {part['runs']} runs" if "runs" in part else ""
    if "steps" in part:
        return (
            f"{minutes}{runs} ({part['steps']:,} steps of {part['step_seconds']:.3g} s, "
            f"{part['validations']} validations of {part['validation_seconds']:.3g} s)"
        )
    attacks = ", ".join(f"{name} {spent:.1f}" for name, spent in part.get("attacks", {}).items())
    rest = f"; not estimated: {', '.join(part['not_estimated'])}" if part.get("not_estimated") else ""
    return f"{minutes}{runs} for {part['images']:,} images" + (f" ({attacks})" if attacks else "") + rest


def _probe(classifier: Classifier, split: Split, threat: Threat, batch_size: int) -> tuple[float, float, float, float]:
    """Seconds an image of a forward and backward pass, and of a forward one; shares right, and standing after PGD."""
    rows = torch.arange(min(len(split), batch_size))
    classifier = classifier.to(device())
    images = as_float(split.read(rows).to(device()))
    labels = split.labels[rows].to(device())
    attacked = WithGradient(classifier)  # the audit and square take a network without one, too
    perturb(attacked, images, labels, threat, steps=1)  # what is only paid once
    _wait()
    generator = torch.Generator(images.device).manual_seed(0)
    start = time.perf_counter()
    adversarial = perturb(attacked, images, labels, threat, steps=PROBE_STEPS, generator=generator)
    _wait()
    middle = time.perf_counter()
    with torch.no_grad(), evaluating(classifier):
        right = classifier(images).argmax(1) == labels
        stands = right & (classifier(adversarial).argmax(1) == labels)
    _wait()
    end = time.perf_counter()
    gradient, forward = (middle - start) / PROBE_STEPS / len(rows), (end - middle) / 2 / len(rows)
    return gradient, forward, float(right.float().mean()), float(stands.float().mean())


def _parts(attacks: Sequence[str]) -> list[str]:
    return [part for name in attacks for part in (STANDARD if name == "autoattack" else (name,))]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> dict[str, float]:
    """The most memory used so far: of the device, or of this process where there is none."""
    if torch.cuda.is_available():
        return {"memory_gigabytes": torch.cuda.max_memory_allocated() / 1e9}
    try:
        import resource
    except ImportError:  # Windows
        return {"memory_gigabytes": float("nan")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_gigabytes": peak * (1 if sys.platform == "darwin" else 1024) / 1e9}


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"the CPU ({torch.get_num_threads()} threads)"
