"""Ideas to make the step faster, each beside the step as it is: those that are in it taken out, the others put in.

    python benchmarks/step_ideas.py [--out benchmarks/results/step_ideas.json]

Every row is one attack (PGD-K) or one outer pass on the same batch; the figure is the median over the rounds of its time
over that of the code as it is in the same round: above 1 the idea is worth having as it is now, below 1 it would pay to
change. docs/decisions/0007 tells what followed. Clock as in train_step.py.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from step_bench import Bench, Work, ratios, seconds
from torch import Tensor
from torch.nn import functional as F

from aalp.commands.tables import text_table
from aalp.method.losses import cross_entropy
from aalp.method.pgd import ImageClassifier, evaluating, perturb
from aalp.method.threat import Linf
from aalp.models import folding_in_place, preact_resnet
from aalp.models.folding_in_place import folded_norms
from aalp.models.inference_copy import Shift
from aalp.store.records import write_record
from aalp.training.host_memory import keep_freed_memory


@dataclass(frozen=True)
class InThreePasses(Linf):
    """The ball and the pixel range apart, and the ball's edges anew in every step."""

    def projection(self, images: Tensor) -> Any:
        return lambda candidates: candidates.clamp(images - self.eps, images + self.eps).clamp_(0.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", default="small-cnn,thin-resnet")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        keep_freed_memory()
    record: dict[str, Any] = {"steps": arguments.steps, "repeats": arguments.repeats, "threads": torch.get_num_threads()}
    record["rows"] = [row for model in arguments.models.split(",") for row in measure(model, arguments)]
    header = ["model", "part", "in place of it", "over the code as it is"]
    print(text_table(header, [[*(row[key] for key in header[:3]), f"{row['ratio']:.3f}"] for row in record["rows"]]))
    if arguments.out:
        write_record(arguments.out, "step_ideas_benchmark", record)


def measure(model: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    bench = Bench(model, arguments)
    rows = []
    for part, works in (("attack", attacks(bench)), ("outer pass", outer_passes(bench))):
        for work in works.values():
            work()
        taken: dict[str, list[float]] = {name: [] for name in works}
        for number in range(arguments.repeats):
            for name in list(works)[:: -1 if number % 2 else 1]:
                taken[name].append(seconds(works[name]))
        for name in works:
            ratio = statistics.median(ratios(taken[name], taken["as it is"]))
            rows.append({"model": model, "part": part, "in place of it": name, "ratio": ratio, "seconds": taken[name]})
    return rows


def attacks(bench: Bench) -> dict[str, Work]:
    def attack(threat: Linf, fold: bool = True, mixed: bool = True, piece: int | None = None) -> Work:
        def work() -> None:
            classifier, count = bench.ours_model, piece or bench.batch
            for images, labels in zip(bench.images.split(count), bench.labels.split(count), strict=True):
                with (
                    folded_norms(classifier) if fold else nullcontext(),
                    bench.fabric.autocast() if mixed else nullcontext(),
                ):
                    perturb(classifier, images, labels, threat, bench.steps)

        return work

    def with_other(module: Any, name: str, other: Any) -> Work:
        def work() -> None:
            before = getattr(module, name)
            setattr(module, name, other)
            try:
                as_it_is()
            finally:
                setattr(module, name, before)

        return work

    def with_weight_gradients() -> None:
        adversarial = bench.images
        with evaluating(bench.ours_model), folded_norms(bench.ours_model), bench.fabric.autocast():
            for _ in range(bench.steps):
                adversarial = adversarial.detach().requires_grad_()
                cross_entropy(bench.ours_model(adversarial), bench.labels).sum().backward()
                assert adversarial.grad is not None
                adversarial = (adversarial + 0.01 * adversarial.grad.sign()).clamp(0.0, 1.0)
        bench.ours_model.zero_grad()

    def in_default_layout(work: Work) -> Work:
        def run() -> None:
            bench.ours_model.to(memory_format=torch.contiguous_format)
            work()

        return run

    def in_channels_last(work: Work) -> Work:
        def run() -> None:
            bench.ours_model.to(memory_format=torch.channels_last)
            work()

        return run

    frozen = copy.deepcopy(bench.ours_model).requires_grad_(False)
    compiled: ImageClassifier = torch.compile(frozen)  # type: ignore[assignment]

    def by_the_compiler() -> None:
        with bench.fabric.autocast():
            perturb(compiled, bench.images, bench.labels, linf, bench.steps)

    linf = Linf(bench.eps)
    as_it_is = attack(linf)
    works = {
        "as it is": as_it_is,
        "BatchNorm unfolded": attack(linf, fold=False),
        "projection in three passes": attack(InThreePasses(bench.eps)),
        "gradients of the weights as well": with_weight_gradients,
        "float32": attack(linf, mixed=False),
        "pieces of 32 images": attack(linf, piece=32),
        "ReLU in new memory": with_other(preact_resnet, "F", SimpleNamespace(relu=lambda maps, inplace: F.relu(maps))),
        "BatchNorm before ReLU keeps its scale": with_other(folding_in_place, "foldable_ahead", lambda network: []),
        "shifts of pixels, not of rows": with_other(Shift, "forward", lambda self, maps: maps + self.by.to(maps.dtype)),
        "averages with a gradient in default layout": with_other(preact_resnet, "averaged", lambda maps: maps.mean((2, 3))),
        "torch.compile, BatchNorm unfolded": by_the_compiler,
    }
    works = {name: in_channels_last(work) for name, work in works.items()}
    return {**works, "default layout": in_default_layout(attack(linf))}


def outer_passes(bench: Bench) -> dict[str, Work]:
    both, labels = torch.cat([bench.images, bench.images]), torch.cat([bench.labels, bench.labels])

    def one() -> None:
        with bench.fabric.autocast():
            loss = cross_entropy(bench.ours_model(both), labels).mean()
        loss.backward()
        bench.ours_model.zero_grad()

    def two() -> None:
        with bench.fabric.autocast():
            halves = [cross_entropy(bench.ours_model(half), bench.labels).mean() for half in both.chunk(2)]
            loss = (halves[0] + halves[1]) / 2
        loss.backward()
        bench.ours_model.zero_grad()

    bench.ours_model.to(memory_format=torch.channels_last)
    return {"as it is": one, "clean and adversarial images one after the other": two}


if __name__ == "__main__":
    main()
