"""What training with each objective takes beside AT, with the model, the batch and the attack of each committed table.

    python benchmarks/training_time.py [--repeats 9] [--out benchmarks/results/training_time.json]

A whole step (attack, forward, backward, update) as `aalp train` runs it. The objectives take turns on one model; the figure
is the median over the rounds of the ratio to AT's step in the same round. On a CPU the clock is the processor time of the
process, on a GPU wall time.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from step_bench import ratios, seconds, training_step

from aalp.commands.tables import text_table
from aalp.models.catalog import build
from aalp.store.records import write_record
from aalp.training.devices import resolve_precision
from aalp.training.host_memory import keep_freed_memory
from aalp.training.step import TrainingStep

CASES = {
    "digits": ("small-cnn", (1, 8, 8), 0.2, 7, 64),
    "mnist": ("small-cnn", (1, 28, 28), 0.3, 10, 128),
    "cifar10": ("thin-resnet", (3, 32, 32), 8 / 255, 5, 128),
}
"""Model, image shape, eps, attack steps and batch of the committed tables, by data set."""

TRAINED = ("standard", "at", "trades", "mart", "alp", "aalp-no-weights", "aalp-no-dropout", "aalp")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        keep_freed_memory()  # as `aalp train` does
    rows = [measure(data, arguments.repeats) for data in CASES]
    print(
        text_table(["step / AT's", *TRAINED], [[row["data"], *(f"{row['over_at'][n]:.2f}" for n in TRAINED)] for row in rows])
    )
    if arguments.out:
        content = {"repeats": arguments.repeats, "threads": torch.get_num_threads(), "rows": rows}
        write_record(arguments.out, "training_time_benchmark", content)


def measure(data: str, repeats: int) -> dict[str, Any]:
    """The seconds of each objective's steps, and their ratios to AT's."""
    model, shape, eps, steps, batch = CASES[data]
    fabric = Fabric(accelerator="auto", devices=1, precision=resolve_precision("auto"))
    torch.manual_seed(0)
    images = torch.rand(batch, *shape, device=fabric.device)
    labels = torch.randint(10, (batch,), device=fabric.device)
    grey = ([0.5] * shape[0], [0.25] * shape[0])
    classifier = build(model, 10, shape, default_normalisation=grey).to(fabric.device)
    classifier.to(memory_format=torch.channels_last).verify(images)
    made = {name: training_step(name, classifier.train(), fabric, eps, steps) for name in TRAINED}
    generator = torch.Generator(fabric.device).manual_seed(0)
    taken: dict[str, list[float]] = {name: [] for name in TRAINED}
    for number in range(repeats + 1):
        for name in TRAINED[:: -1 if number % 2 else 1]:
            step = made[name]

            def work(step: TrainingStep = step) -> None:
                step.losses(images, labels, 1.0, generator)
                step.update()

            spent = seconds(work)
            if number:  # the first round warms up
                taken[name].append(spent)
    over_at = {name: statistics.median(ratios(taken[name], taken["at"])) for name in TRAINED}
    return {"data": data, "model": model, "steps": steps, "batch_size": batch, "seconds": taken, "over_at": over_at}


if __name__ == "__main__":
    main()
