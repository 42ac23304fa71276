"""What our attack and training step cost beside the passes that no implementation can do without.

    python benchmarks/train_step.py [--repeats 7] [--steps 10] [--out benchmarks/results/train_step.json]

The floor of PGD-K is K bare forward+backward passes of the same model, precision and layout, in evaluation
mode, with gradients for the images only. The floor of a training step is that, plus one bare training-mode
forward+backward with gradients for the weights (on the batch for AT, on clean and adversarial images for the
objectives that need both; TRADES' attack also needs one clean forward, which counts as its floor). Ours and
the floor run in turn, inside one process; the figure is the median of the ratios pair by pair, so that the
machine's drift cancels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from aalp.commands.tables import text_table
from aalp.method.losses import cross_entropy
from aalp.method.objectives import OBJECTIVES, Objective
from aalp.method.pgd import AttackOptions, evaluating, perturb
from aalp.method.threat import Linf
from aalp.models.catalog import build
from aalp.models.classifier import Classifier
from aalp.store.records import write_record
from aalp.training.loop import resolve_precision
from aalp.training.step import OuterLoss, TrainingStep

CASES = (("small-cnn", (1, 28, 28), 0.3), ("thin-resnet", (3, 32, 32), 8 / 255), ("preact-resnet18", (3, 32, 32), 8 / 255))
TRAINED = ("at", "trades", "alp", "aalp")


def main() -> None:
    arguments = parse()
    record: dict[str, Any] = {"batch_size": arguments.batch_size, "steps": arguments.steps, "repeats": arguments.repeats}
    rows: list[dict[str, Any]] = []
    for model, shape, eps in CASES[: arguments.models]:
        rows += measure(model, shape, eps, arguments)
    record["rows"] = rows
    header = ["model", "work", "floor img-steps/s", "ours / floor, median", "least", "most"]
    table = [
        [row["model"], row["work"], f"{row['floor_rate']:.0f}", *(f"{row[key]:.3f}" for key in ("median", "least", "most"))]
        for row in rows
    ]
    print(text_table(header, table))
    if arguments.out:
        write_record(arguments.out, "train_step_benchmark", record)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="attack steps K")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", type=int, default=2, help="how many of: small-cnn, thin-resnet, preact-resnet18")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def measure(model: str, shape: tuple[int, int, int], eps: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model."""
    fabric = Fabric(accelerator="auto", devices=1, precision=resolve_precision(arguments.precision))
    torch.manual_seed(0)
    classifier = build(model, 10, shape, default_normalisation=([0.5] * shape[0], [0.25] * shape[0]))
    classifier.to(fabric.device).to(memory_format=torch.channels_last)
    classifier.train()
    images = torch.rand(arguments.batch_size, *shape, device=fabric.device)
    labels = torch.randint(10, (arguments.batch_size,), device=fabric.device)
    threat, steps = Linf(eps), arguments.steps

    def bare_attack() -> None:
        bare_attack_passes(fabric, classifier, images, labels, steps)

    def our_attack() -> None:
        with fabric.autocast():
            perturb(classifier, images, labels, threat, steps)

    rows = [ratio(model, f"PGD-{steps}", bare_attack, our_attack, arguments.repeats, steps * len(images))]
    for name in TRAINED:
        objective = OBJECTIVES[name][0]()
        step = training_step(fabric, classifier, objective, threat, steps)
        outer_images = images if name == "at" else torch.cat([images, images])
        outer_labels = labels if name == "at" else torch.cat([labels, labels])

        def floor(name: str = name, images: Tensor = outer_images, labels: Tensor = outer_labels) -> None:
            bare_attack()
            if name == "trades":
                with torch.no_grad(), evaluating(classifier), fabric.autocast():
                    classifier(images[: len(images) // 2])
            bare_training_pass(fabric, classifier, images, labels)

        def ours(step: TrainingStep = step) -> None:
            generator = torch.Generator(fabric.device).manual_seed(0)
            step.losses(images, labels, 1.0, generator)
            classifier.zero_grad()

        done = steps * len(images) + len(outer_images)
        rows.append(ratio(model, f"{name}, PGD-{steps}", floor, ours, arguments.repeats, done))
    return rows


def bare_attack_passes(fabric: Fabric, classifier: Classifier, images: Tensor, labels: Tensor, steps: int) -> None:
    with evaluating(classifier):
        for _ in range(steps):
            leaf = images.detach().requires_grad_()
            with fabric.autocast():
                loss = cross_entropy(classifier(leaf), labels).sum()
            torch.autograd.grad(loss, leaf)


def bare_training_pass(fabric: Fabric, classifier: Classifier, images: Tensor, labels: Tensor) -> None:
    with fabric.autocast():
        loss = cross_entropy(classifier(images), labels).mean()
    loss.backward()
    classifier.zero_grad()


def training_step(fabric: Fabric, classifier: Classifier, objective: Objective, threat: Linf, steps: int) -> TrainingStep:
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    module, wrapped = fabric.setup(OuterLoss(classifier, objective), optimizer)
    attack = AttackOptions(steps)
    return TrainingStep(fabric, module, classifier, objective, threat, attack, wrapped, awp=0.0, awp_start=0.0, clip=None)


def ratio(
    model: str, work: str, floor: Callable[[], None], ours: Callable[[], None], repeats: int, image_steps: int
) -> dict[str, Any]:
    """Times of both, in turn, and their ratios pair by pair."""
    floor(), ours()
    pairs = [(seconds(floor), seconds(ours)) for _ in range(repeats)]
    ratios = [mine / bare for bare, mine in pairs]
    return {
        "model": model,
        "work": work,
        "floor_rate": image_steps / statistics.median(bare for bare, _ in pairs),
        "median": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "seconds": pairs,
    }


def seconds(work: Callable[[], None]) -> float:
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
