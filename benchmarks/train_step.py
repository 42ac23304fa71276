"""What our training step costs: beside the passes that no implementation can do without, and beside others' loops.

    python benchmarks/train_step.py [--repeats 5] [--steps 10] [--out benchmarks/results/train_step.json]
    python benchmarks/train_step.py --profile thin-resnet        # where the time of one AALP step goes

Contenders, each a whole step on the same model and batch (attack, forward, backward, SGD update), run in turn; the
figure is the median over the rounds of the ratio within a round, so that the machine's drift cancels.

floor          the K bare forward+backward passes in evaluation mode with gradients for the images only, and one bare
               training-mode pass with gradients for the weights (on the batch for AT, on clean and adversarial images
               for the objectives that need both; TRADES' attack also needs one clean forward): same model, precision
               and layout as ours. BatchNorm is not folded in it: that is ours to gain.
ours           `aalp.training.step.TrainingStep`, as `aalp train` runs it.
papers         a plain float32 loop in PyTorch's default layout, as the published scripts write it
               (TRADES, arXiv 1901.08573: evaluation mode, gradients for the images only).
torchattacks   its PGD (TPGD for TRADES) in a loop, as its README shows, and the same outer loss. Needs aalp[benchmark].
art            the Adversarial Robustness Toolbox's AdversarialTrainerMadryPGD, fitted on the batch. AT alone.

Two processes take turns, new ones for each objective: in one, floor and ours, with freed memory kept as `aalp train`
keeps it; in the other, the loops of others and the floor once more (`plain-floor`), with the memory allocator as Python
starts.

On a CPU the clock is the processor time of the process, which is its wall time on a core of its own and does not count
what else the machine does; on a GPU it is wall time. `modules` are Guided Dropout, contributions and sample weights:
all that AALP adds to ALP, as a share of an AALP step. Memory is the most that tensors hold at once within a step,
beyond what lives between steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from step_bench import CASES, Bench, Work, ratios, seconds

from aalp.commands.tables import text_table
from aalp.store.records import write_record
from aalp.training.devices import resolve_precision
from aalp.training.host_memory import keep_freed_memory

TRAINED = ("at", "trades", "alp", "aalp")


def main() -> None:
    arguments = parse()
    if arguments.serve:
        serve(arguments)
    elif arguments.peak:
        model, name, contender = arguments.peak.split(",")
        print(json.dumps(peak_of(model, name, contender, arguments)))
    elif arguments.profile:
        profile(arguments)
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    record: dict[str, Any] = {
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(arguments.precision),
        "clock": "wall" if torch.cuda.is_available() else "processor time",
    }
    record["rows"] = [row for model in arguments.models.split(",") for row in measure(model, arguments)]
    record["memory"] = [memory(model, name, arguments) for model in arguments.models.split(",") for name in ("at", "aalp")]
    print(tables(record))
    if arguments.out:
        write_record(arguments.out, "train_step_benchmark", record)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="attack steps K")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, help="images a batch, for all models")
    parser.add_argument("--models", default="small-cnn,thin-resnet,preact-resnet18", help="separated by commas")
    parser.add_argument("--objectives", default=",".join(TRAINED), help="separated by commas")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--profile", metavar="MODEL", help="print where the time of one AALP step goes, and stop")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # in a process of its own: the peak of one contender
    parser.add_argument("--serve", choices=("plain", "kept"), help=argparse.SUPPRESS)  # in one: steps on request
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def serve(arguments: argparse.Namespace) -> None:
    """Answer each line `model objective contender` with the seconds of one step of it."""
    if arguments.serve == "kept" and not torch.cuda.is_available():
        keep_freed_memory()  # as `aalp train` does
    works: dict[tuple[str, str], Work] = {}
    bench, built = None, ""
    for line in sys.stdin:
        model, name, contender = line.split()
        if bench is None or model != built:
            bench, works, built = Bench(model, arguments), {}, model
        if (name, contender) not in works:
            works[name, contender] = bench.work(contender, name)
            works[name, contender]()
        print(seconds(works[name, contender]), flush=True)


class Worker:
    """A process that runs steps on request."""

    def __init__(self, memory: str, arguments: argparse.Namespace) -> None:
        words = [sys.executable, __file__, "--serve", memory, *passed_on(arguments)]
        quiet = {**os.environ, "TQDM_DISABLE": "1"}  # ART's progress bars
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)

    def seconds(self, *request: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(*request, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def passed_on(arguments: argparse.Namespace) -> list[str]:
    words = ["--steps", str(arguments.steps), "--precision", arguments.precision]
    return words + (["--batch_size", str(arguments.batch_size)] if arguments.batch_size else [])


def measure(model: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model: every contender on every objective."""
    rows = []
    for name in arguments.objectives.split(","):
        # Anew for each objective, as a training is: what an objective frees changes how the next one gets its memory.
        workers = {memory: Worker(memory, arguments) for memory in ("plain", "kept")}
        contenders = {"floor": "kept", "ours": "kept", "plain-floor": "plain", "papers": "plain"}
        if find_spec("torchattacks"):
            contenders["torchattacks"] = "plain"
        if find_spec("art") and name == "at":
            contenders["art"] = "plain"
        if name == "aalp":
            contenders["modules"] = "kept"
        taken: dict[str, list[float]] = {contender: [] for contender in contenders}
        for number in range(arguments.repeats):
            for contender in list(contenders)[:: -1 if number % 2 else 1]:
                taken[contender].append(workers[contenders[contender]].seconds(model, name, contender))
        batch = arguments.batch_size or (128 if torch.cuda.is_available() else CASES[model][2])
        row: dict[str, Any] = {"model": model, "objective": name, "batch_size": batch, "seconds": taken}
        row["image_steps_per_second"] = arguments.steps * batch / statistics.median(taken["ours"])
        row["ours_over_floor"] = statistics.median(ratios(taken["ours"], taken["floor"]))
        row["plain_over_kept_floor"] = statistics.median(ratios(taken["plain-floor"], taken["floor"]))
        for other in (contender for contender in OTHERS if contender in taken):
            row[f"{other}_over_ours"] = statistics.median(ratios(taken[other], taken["ours"]))
        if "modules" in taken:
            row["modules_share"] = statistics.median(ratios(taken["modules"], taken["ours"]))
        rows.append(row)
        print(text_table(*row_table([row])).splitlines()[-1], file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.close()
    return rows


def memory(model: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak bytes of the floor's and of our step, each in a process of its own, and their ratio."""
    peaks = {}
    for contender in ("floor", "ours"):
        words = [sys.executable, __file__, "--peak", f"{model},{name},{contender}", *passed_on(arguments)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks[contender] = int(done.stdout.splitlines()[-1])
    return {"model": model, "objective": name, **peaks, "ours_over_floor": peaks["ours"] / peaks["floor"]}


def peak_of(model: str, name: str, contender: str, arguments: argparse.Namespace) -> int:
    """Peak bytes of two steps beyond what was there before them."""
    bench = Bench(model, argparse.Namespace(**{**vars(arguments), "steps": 2}))
    work, images, labels = bench.work(contender, name), bench.images, bench.labels
    bench.images, bench.labels = images[:2], labels[:2]
    work()  # what is loaded or allocated once and for all is not the step's
    bench.images, bench.labels = images, labels
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(), work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as found:
        work(), work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        found.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    return int(max(held) - held[0])


def profile(arguments: argparse.Namespace) -> None:
    """Where the time of an AALP step goes, by operator."""
    keep_freed_memory()
    work = Bench(arguments.profile, arguments).ours("aalp")
    work()
    with torch.profiler.profile() as found:
        work()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=45))


OTHERS = ("papers", "torchattacks", "art")


def row_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["model", "objective", "batch", "image-steps/s", "ours / floor", *(f"{name} / ours" for name in OTHERS)]
    cells = [
        [row["model"], row["objective"], str(row["batch_size"]), f"{row['image_steps_per_second']:.0f}"]
        + [f"{row['ours_over_floor']:.3f}"]
        + [f"{row[f'{name}_over_ours']:.2f}" if f"{name}_over_ours" in row else "" for name in OTHERS]
        for row in rows
    ]
    return header, cells


def tables(record: dict[str, Any]) -> str:
    shares = [[row["model"], f"{row['modules_share']:.2%}"] for row in record["rows"] if "modules_share" in row]
    megabytes = [
        [row["model"], row["objective"], *(f"{row[name] / 2**20:.0f}" for name in ("floor", "ours"))]
        for row in record["memory"]
    ]
    for cells, row in zip(megabytes, record["memory"], strict=True):
        cells.append(f"{row['ours_over_floor']:.3f}")
    parts = [text_table(*row_table(record["rows"])), text_table(["model", "AALP's modules, share of a step"], shares)]
    parts.append(text_table(["model", "objective", "floor, MiB", "ours, MiB", "ours / floor"], megabytes))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
