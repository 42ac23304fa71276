"""How training grows: with the batch, the model, the number of images, and processes side by side.

    python benchmarks/scale.py [--out benchmarks/results/scale.json] [--plot docs/speed/scale.png]

batch, model   images trained a second by a whole AT step (PGD-K), by batch size and by model.
images         images a second through the loader alone, and the memory that a data set costs, for 10^3 to 10^6 images
               made by repetition: resident ones (digits, 8x8), and files read by two workers (the same 16 PNG files
               under as many path objects as there would be). Memory is what the process and its workers hold at the
               end of the pass more than before the data set was made, counted once where they share it (PSS).
cost           an adversarial training step in units of an ordinary one, by objective and attack steps: what one more attack
               step costs, and what is there without any; the figure that docs/scale.md computes with.
processes      one process of one thread, one of two, and two of one side by side, each training on its own: images a second
               of all together, by the wall clock: on a machine that does nothing else.

Settings of a section run in turn, in rounds, and the medians are reported; where only one process computes, its clock is
processor time on a CPU, so that what else the machine does is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from step_bench import Bench, seconds

from aalp.commands.tables import text_table
from aalp.data.images import Decoding
from aalp.data.loaders import Loader, epoch_order
from aalp.data.paths import Paths
from aalp.data.sources import load_source
from aalp.data.split import ResidentSplit, Split
from aalp.data.stored import FileSplit
from aalp.store.records import write_record
from aalp.training.host_memory import keep_freed_memory

BATCHES = 100
"""Batches of 128 that a pass over the data set is cut off after; whole epochs would say the same, later."""

COSTED = (("thin-resnet", 64), ("timm:resnet50", 2))
"""Model and batch size (on a CPU) whose adversarial step is compared with an ordinary one."""


def main() -> None:
    arguments = parse()
    if not torch.cuda.is_available():
        keep_freed_memory()
    if arguments.loader:
        kind, count = arguments.loader.split(",")
        print(json.dumps(load(kind, int(count))))
        return
    if arguments.train:
        train_on_signal(arguments)
        return
    steps, repeats = arguments.steps, arguments.repeats
    record: dict[str, Any] = {"steps": steps, "repeats": repeats, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    batches = [int(size) for size in arguments.batches.split(",")]
    record["batch"] = in_rounds([("thin-resnet", size) for size in batches], arguments)
    record["model"] = in_rounds([(model, arguments.model_batch) for model in arguments.models.split(",")], arguments)
    record["cost"] = [row for model, batch in COSTED for row in cost(model, batch, arguments)]
    record["images"] = [image_row(kind, 10**power) for kind in ("resident", "files") for power in range(3, 7)]
    record["processes"] = side_by_side(arguments)
    print(tables(record))
    if arguments.out:
        write_record(arguments.out, "scale_benchmark", record)
    if arguments.plot:
        plot(record, arguments.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="attack steps K")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", default="16,32,64,128,256", help="batch sizes of thin-resnet, separated by commas")
    parser.add_argument("--models", default="small-cnn,thin-resnet,preact-resnet18", help="separated by commas")
    parser.add_argument("--model_batch", type=int, default=16, help="batch size at which models are compared")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--plot", type=Path, help="PNG to draw; needs aalp[figures]")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--loader", help=argparse.SUPPRESS)  # in a process of its own: one pass
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)  # in one: a step for each line
    return parser.parse_args()


def bench(model: str, batch: int, arguments: argparse.Namespace) -> Bench:
    return Bench(model, argparse.Namespace(steps=arguments.steps, precision=arguments.precision, batch_size=batch))


def in_rounds(settings: Sequence[tuple[str, int]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Images trained a second for each (model, batch size)."""
    benches = [bench(model, batch, arguments) for model, batch in settings]
    works = [made.ours("at") for made in benches]
    for work in works:
        work()
    taken = [[seconds(work) for work in works] for _ in range(arguments.repeats)]
    rows = []
    for (model, batch), made, spent in zip(settings, benches, zip(*taken, strict=True), strict=True):
        parameters = sum(parameter.numel() for parameter in made.ours_model.parameters())
        rate = batch / statistics.median(spent)
        rows.append(
            {"model": model, "parameters": parameters, "batch_size": batch, "images_per_second": rate, "seconds": spent}
        )
    return rows


def cost(model: str, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """AT and AALP with PGD-1 and PGD-3, in units of an ordinary step of the same model."""
    batch = 64 if torch.cuda.is_available() else batch
    works = {"standard": bench(model, batch, arguments).ours("standard")}
    for steps in (1, 3):
        made = bench(model, batch, argparse.Namespace(**{**vars(arguments), "steps": steps}))
        works |= {f"{name}, PGD-{steps}": made.ours(name) for name in ("at", "aalp")}
    for work in works.values():
        work()
    taken = {name: [] for name in works}  # type: dict[str, list[float]]
    for _ in range(arguments.repeats):
        for name, work in works.items():
            taken[name].append(seconds(work))
    over = {name: [one / plain for one, plain in zip(spent, taken["standard"], strict=True)] for name, spent in taken.items()}
    return [
        {"model": model, "work": name, "over_standard": statistics.median(over[name]), "seconds": taken[name]} for name in works
    ]


def image_row(kind: str, count: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--loader", f"{kind},{count}"], capture_output=True, text=True, check=True)
    return {"kind": kind, "images": count, **json.loads(done.stdout.splitlines()[-1])}


def load(kind: str, count: int) -> dict[str, float]:
    """A pass over a data set of so many images, cut off after `BATCHES` batches."""
    with tempfile.TemporaryDirectory() as folder:
        few = load_source("digits").train
        torch.ones(1).sum(), next(Loader(few, 128, torch.device("cpu")).batches())
        before = held_memory()
        split = resident(few, count) if kind == "resident" else files(few, count, Path(folder))
        started = time.perf_counter()
        loader, done = Loader(split, 128, torch.device("cpu"), workers=2), 0
        most = 0.0
        for number, (images, _) in enumerate(loader.batches(epoch_order(count, 0, 0)[: 128 * BATCHES])):
            done += len(images)
            if number % 20 == 5:
                most = max(most, held_memory())
        return {
            "images_per_second": done / (time.perf_counter() - started),
            "megabytes": max(most, held_memory()) - before,
            "pixels_megabytes": count * 64 / 2**20 if kind == "resident" else 0.0,
        }


def resident(few: Split, count: int) -> ResidentSplit:
    rows = torch.arange(count) % len(few)
    return ResidentSplit(few.read(rows), few.labels[rows])


def files(few: Split, count: int, folder: Path) -> FileSplit:
    for number, image in enumerate(few.read(torch.arange(16))):
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    paths = Paths([Path(f"{folder}/{number % 16}.png") for number in range(count)])
    return FileSplit(torch.arange(count) % 10, Decoding((1, 8, 8), None), paths)


def held_memory() -> float:
    """MiB that this process and its children hold; pages they share count once."""
    mine = os.getpid()
    children = Path(f"/proc/{mine}/task/{mine}/children").read_text().split()
    total = 0
    for process in [str(mine), *children]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total / 1024


def train_on_signal(arguments: argparse.Namespace) -> None:
    """Answer each line with a step."""
    work = bench("thin-resnet", 64, arguments).ours("at")
    work()
    for _ in sys.stdin:
        work()
        print("done", flush=True)


def side_by_side(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Wall-clock images a second of one process of one thread and of two, and of two processes at the same time, in turn."""
    words = [sys.executable, __file__, "--train", "--steps", str(arguments.steps), "--precision", arguments.precision]

    def start(threads: int) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    single, double = [start(1), start(1)], start(2)
    settings = {(1, 1): single[:1], (1, 2): [double], (2, 1): single}
    taken: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(arguments.repeats + 1):
        for setting, workers in settings.items():
            started = time.perf_counter()
            for worker in workers:
                assert worker.stdin is not None
                print("step", file=worker.stdin, flush=True)
            for worker in workers:
                assert worker.stdout is not None
                worker.stdout.readline()
            taken[setting].append(time.perf_counter() - started)
    for worker in (*single, double):
        worker.communicate()
    rows = []
    for (processes, threads), spent in taken.items():
        rate = statistics.median(64 * processes / one for one in spent[1:])
        rows.append({"processes": processes, "threads": threads, "images_per_second": rate, "seconds": spent[1:]})
    return rows


def tables(record: dict[str, Any]) -> str:
    trained = [
        [row["model"], f"{row['parameters'] / 1e6:.1f} M", str(row["batch_size"]), f"{row['images_per_second']:.0f}"]
        for row in (*record["batch"], *record["model"])
    ]
    loaded = [
        [row["kind"], f"{row['images']:,}", f"{row['images_per_second']:.0f}", f"{row['megabytes']:.0f}"]
        for row in record["images"]
    ]
    costs = [[row["model"], row["work"], f"{row['over_standard']:.2f}"] for row in record["cost"]]
    aside = [[str(row["processes"]), str(row["threads"]), f"{row['images_per_second']:.0f}"] for row in record["processes"]]
    return "\n\n".join(
        [
            text_table(["model", "parameters", "batch", f"images/s, AT PGD-{record['steps']}"], trained),
            text_table(["model", "step", "ordinary steps"], costs),
            text_table(["data set", "images", "images/s", "memory, MiB"], loaded),
            text_table(["processes", "threads each", "images/s together"], aside),
        ]
    )


def plot(record: dict[str, Any], path: Path) -> None:
    """Four panels: by batch, by model, by images (rate and memory)."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    titles = (
        "batch size (thin-resnet)",
        f"model (batch {record['model'][0]['batch_size']})",
        "number of images",
        "number of images",
    )
    figure = make_subplots(2, 2, subplot_titles=[f"by {title}" for title in titles], vertical_spacing=0.18)

    colours = {"resident": "#1f6f8b", "files": "#c8553d", "": "#444444"}

    def line(row: int, column: int, x: list[Any], y: list[float], name: str, legend: bool = False) -> None:
        style = {"mode": "lines+markers", "name": name, "showlegend": legend, "line": {"color": colours[name]}}
        figure.add_trace(graph_objects.Scatter(x=x, y=y, **style), row, column)

    line(1, 1, [str(row["batch_size"]) for row in record["batch"]], [row["images_per_second"] for row in record["batch"]], "")
    bars = graph_objects.Bar(
        x=[f"{row['model']}<br>{row['parameters'] / 1e6:.1f} M" for row in record["model"]],
        y=[row["images_per_second"] for row in record["model"]],
        showlegend=False,
        marker_color=colours[""],
    )
    figure.add_trace(bars, 1, 2)
    for kind in ("resident", "files"):
        rows = [row for row in record["images"] if row["kind"] == kind]
        counts = [row["images"] for row in rows]
        line(2, 1, counts, [row["images_per_second"] for row in rows], kind, legend=True)
        line(2, 2, counts, [row["megabytes"] for row in rows], kind)
    for axis in ("xaxis3", "xaxis4", "yaxis3"):
        figure.layout[axis].update(type="log", dtick=1)
    figure.layout.xaxis.type = "category"
    figure.layout.yaxis.rangemode = "tozero"
    for axis, title in (("yaxis", "images/s trained"), ("yaxis2", "images/s trained"), ("yaxis3", "images/s loaded")):
        figure.layout[axis].title = title
    figure.layout.yaxis4.title = "memory, MiB"
    figure.update_layout(template="plotly_white", width=900, height=640, margin={"l": 70, "r": 20, "t": 50, "b": 50})
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_image(str(path), scale=2)


if __name__ == "__main__":
    main()
