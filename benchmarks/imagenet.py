"""Hours that adversarial training on ImageNet would take, from what was measured and what was published.

    python benchmarks/imagenet.py [--record benchmarks/results/scale.json] [--throughput 1:2470,8:16621]

Measured (the record of scale.py): what an adversarial step costs in ordinary steps. That of the thin ResNet at batch 64 is
taken: ResNet-50 could be measured with two images a batch only, where the update of its weights, the same in every step,
makes an ordinary step look dear. Given: images that ordinary training
of the model takes a second, by the number of GPUs; by default NVIDIA's own figures for ResNet-50 v1.5 in mixed precision
on A100 80 GB (github.com/NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5/README.md). Assumed:
that the cost in ordinary steps is the same there, and how well further machines scale. With a GPU at hand, measure
instead: `python benchmarks/scale.py --models timm:resnet50 --model_batch 128 --steps 3` gives the images a second of AT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aalp.commands.tables import text_table
from aalp.store.records import read_record

IMAGES = 1_281_167
"""Training images of ILSVRC 2012."""


def main() -> None:
    arguments = parse()
    record = read_record(arguments.record, "scale_benchmark")
    costs = {row["work"]: row["over_standard"] for row in record["cost"] if row["model"] == arguments.cost_of}
    published = {int(gpus): float(rate) for gpus, rate in (pair.split(":") for pair in arguments.throughput.split(","))}
    rows = []
    for name in ("at", "aalp"):
        factor = in_ordinary_steps(costs, name, arguments.steps)
        for gpus in (1, 8, 64):
            rate = throughput(published, gpus, arguments.efficiency) / factor
            hours = arguments.epochs * IMAGES / rate / 3600
            rows.append([name, f"{factor:.2f}", str(gpus), f"{rate:.0f}", f"{hours:.1f}", f"{hours * gpus:.0f}"])
    print(f"{arguments.epochs} epochs, PGD-{arguments.steps}")
    print(text_table(["objective", "ordinary steps", "GPUs", "images/s", "hours", "GPU-hours"], rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--cost_of", default="thin-resnet", help="model of the record whose costs are taken")
    parser.add_argument("--throughput", default="1:2470,8:16621", help="GPUs:images a second of ordinary training, ...")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--steps", type=int, default=3, help="attack steps K")
    parser.add_argument("--efficiency", type=float, default=0.9, help="share of the linear gain beyond what was published")
    return parser.parse_args()


def in_ordinary_steps(costs: dict[str, float], name: str, steps: int) -> float:
    """The cost of PGD-K on the line through those of PGD-1 and PGD-3."""
    one, three = costs[f"{name}, PGD-1"], costs[f"{name}, PGD-3"]
    return one + (three - one) / 2 * (steps - 1)


def throughput(published: dict[int, float], gpus: int, efficiency: float) -> float:
    known = max(number for number in published if number <= gpus)
    return published[known] * (gpus / known) * (efficiency if gpus > known else 1.0)


if __name__ == "__main__":
    main()
