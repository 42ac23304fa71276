"""What a process holds of a large model between steps and at most in a step, under both strategies.

    python benchmarks/sharded_memory.py [--model wide-resnet28-10] [--out benchmarks/results/sharded_memory.json]

Four steps of training (AT, FGSM) on one random 32x32 image a process, in float32, so that there is little but weights.
Between steps: all tensors that python knows of (DDP's copy of the gradients is not among them). At most: resident
memory in the last step, less that before the model was made, with a C library that gives freed blocks back at once. Of
the process that holds most.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from aalp.commands.launching import launch
from aalp.commands.tables import text_table
from aalp.data.split import ResidentSplit
from aalp.distributed import joined, leave
from aalp.method.objectives import AT
from aalp.method.pgd import AttackOptions
from aalp.method.threat import Linf
from aalp.models.catalog import ModelOptions, build
from aalp.store.records import write_record
from aalp.store.run import RunDirectory
from aalp.training import loop as training_loop
from aalp.training.options import TrainingOptions
from aalp.training.plan import Fit

loop: Any = training_loop
"""Of which names are replaced here."""

STEPS = 4
PROCESSES = ((1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="wide-resnet28-10")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--strategy", help="of a process that the benchmark starts")
    parser.add_argument("--folder", type=Path, help="where such a process writes what it held")
    arguments = parser.parse_args()
    if arguments.folder:
        work(arguments.model, arguments.strategy, arguments.folder)
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # larger blocks are the kernel's as soon as they are free
    rows = [measure(arguments.model, size, strategy) for size, strategy in PROCESSES]
    names = ("weights", "between", "peak")
    cells = [[str(row["processes"]), row["strategy"], *(f"{row[name] / 1e6:.0f}" for name in names)] for row in rows]
    print(text_table(["processes", "strategy", "weights MB", "between steps MB", "peak MB"], cells))
    if arguments.out:
        write_record(arguments.out, "sharded_memory", {"model": arguments.model, "rows": rows})


def measure(model: str, size: int, strategy: str) -> dict[str, Any]:
    """The most that any process held, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model", model, "--strategy", strategy, "--folder", folder]
        if launch([sys.executable, __file__, *words], size) != 0:
            raise SystemExit(f"{size} processes under {strategy} failed")
        found = [json.loads(path.read_text()) for path in Path(folder).glob("held-*.json")]
    return {"processes": size, "strategy": strategy} | {name: max(each[name] for each in found) for name in found[0]}


def work(model: str, strategy: Any, folder: Path) -> None:
    ranks = joined()
    loop.keep_freed_memory = lambda: False
    gc.freeze()
    before = resident("VmRSS")
    held: dict[str, int] = {}
    average = loop.Averager.update

    def update(self: Any, step: int) -> None:
        """The last thing that a step does on every process."""
        average(self, step)
        if step == STEPS - 2:
            held["between"] = living()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        if step == STEPS - 1:
            held["peak"] = resident("VmHWM") - before

    loop.Averager.update = update
    torch.manual_seed(0)
    classifier = build(model, 10, (3, 32, 32), ModelOptions()).train()
    held["weights"] = sum(parameter.nbytes for parameter in classifier.parameters())
    count = STEPS * ranks.size
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    split = ResidentSplit(images, torch.arange(count) % 10)
    options = TrainingOptions(epochs=1, batch_size=ranks.size, lr=0.001, precision="32-true", validation_steps=1)
    loop.fit(
        Fit(
            classifier,
            *(AT(), Linf(8 / 255), split, split.subset(torch.arange(0)), RunDirectory(folder / "run"), {"model": model}),
            attack=AttackOptions(steps=1),
            options=options,
            ranks=ranks,
            strategy=strategy,
        )
    )
    (folder / f"held-{ranks.rank}.json").write_text(json.dumps(held))
    leave()
    gc.unfreeze()


def living() -> int:
    """Bytes of all tensors that are alive and were not when gc was frozen."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def resident(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
