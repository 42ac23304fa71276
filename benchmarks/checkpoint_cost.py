"""What saving a state after every epoch and the guards cost beside the training, and whether memory stays flat.

    python benchmarks/checkpoint_cost.py [--images 6000] [--epochs 50] [--out benchmarks/results/checkpoint_cost.json]

Cost: one run on images of MNIST's shape with the preset's model, batch size and attack; the seconds spent in writing
states and weights (checksum and flushing to disk included), in seeding every generator and in looking for a loss that
is not finite, as shares of the same run's training seconds. An epoch of MNIST has 59,000 training images: with fewer
here, the share of what happens once an epoch comes out larger than it is.
Memory: 50 epochs on digits, the process's resident memory after each; the slope is that of a straight line through
the last four fifths.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aalp.cli import main as aalp
from aalp.commands.console import Display
from aalp.commands.tables import text_table
from aalp.store.records import write_record
from aalp.training import loop as training_loop

loop: Any = training_loop
"""Of which names are replaced here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cost = measure_cost(Path(folder), arguments.images)
        memory = measure_memory(Path(folder), arguments.epochs)
    rows = [[name, f"{seconds:.3f}", f"{seconds / cost['training_seconds']:.2%}"] for name, seconds in cost["seconds"].items()]
    print(text_table(["what", "seconds", "of training"], rows))
    print(f"memory: {memory['kilobytes_per_epoch']:+.1f} kB an epoch over {memory['epochs_used']} epochs of digits")
    if arguments.out:
        write_record(arguments.out, "checkpoint_cost", {"cost": cost, "memory": memory})


def measure_cost(folder: Path, images: int) -> dict[str, Any]:
    noise = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", images + 100), ("test", 10)):
        arrays[f"x_{split}"] = noise.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 10
    np.savez(folder / "mnist.npz", **arrays)
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*words, **options)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

        return run

    before = loop.save_state, loop.seed_global_generators, torch.isfinite, loop.write_tensors
    loop.save_state, loop.seed_global_generators = timed("states", before[0]), timed("seeds", before[1])
    loop.write_tensors = timed("weights, last and best", before[3])
    torch.isfinite = timed("finite checks, attacks' own included", before[2])
    shown: list[float] = []
    epoch = Display.epoch
    Display.epoch = lambda self, row, epochs: shown.append(row["seconds"])  # type: ignore[method-assign]
    try:
        words = [
            "train",
            "--config",
            "mnist",
            "--data",
            f"npz:{folder / 'mnist.npz'}",
            "--run",
            str(folder / "mnist"),
            "--quiet",
        ]
        words += ["--training.epochs", "2", "--data_options.validation", "100"]
        assert aalp(words) == 0
    finally:
        loop.save_state, loop.seed_global_generators, torch.isfinite, loop.write_tensors = before
        Display.epoch = epoch  # type: ignore[method-assign]
    seconds["all"] = sum(seconds.values())
    return {"images": images, "epochs": 2, "training_seconds": shown[-1], "seconds": seconds}


def measure_memory(folder: Path, epochs: int) -> dict[str, Any]:
    resident: list[float] = []
    epoch = Display.epoch
    Display.epoch = lambda self, row, epochs: resident.append(resident_kilobytes())  # type: ignore[method-assign]
    try:
        words = ["train", "--config", "digits", "--training.epochs", str(epochs), "--attack.steps", "1", "--quiet"]
        words += ["--training.validation_steps", "1", "--data_options.validation", "50", "--run", str(folder / "digits")]
        assert aalp(words) == 0
    finally:
        Display.epoch = epoch  # type: ignore[method-assign]
    used = resident[len(resident) // 5 :]
    slope = float(np.polyfit(range(len(used)), used, 1)[0])
    return {"kilobytes_per_epoch": slope, "epochs_used": len(used), "resident_kilobytes": resident}


def resident_kilobytes() -> float:
    """Of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


if __name__ == "__main__":
    main()
