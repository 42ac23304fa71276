"""AutoAttack as its authors' package runs it, beside ours: same model, images and seeds, part by part in turn.

    python benchmarks/autoattack.py RUN... [--data SOURCE] [--images 200] [--repeats 5] [--out FILE]

Each runs its own ensemble: a part attacks the images that stood under that side's parts before it.
The package gets the model as a user would hand it over: float32, contiguous. On a CPU the seconds are the process's
own (`time.process_time`), which other programs on the machine do not lengthen; threads are those of torch, 1 unless
OMP_NUM_THREADS says more. The ratio of the whole is that of the sums; an image counts as broken by the ensemble if any
part of it broke it. Rows are added to FILE, or replace those of the same run and count there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aalp.commands.loading import load_model, weights_file
from aalp.commands.tables import text_table
from aalp.data.sources import load_source
from aalp.data.split import as_float
from aalp.evaluation.attacks import attack_by_name, run_attack
from aalp.evaluation.autoattack import STANDARD
from aalp.evaluation.views import search_precision
from aalp.method.precision import full_precision
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier
from aalp.store.records import write_record


def main() -> None:
    arguments = parse()
    anew = {(run.name, arguments.images) for run in arguments.runs}
    rows = [row for row in stored(arguments.out) if (row["run"], row["images"]) not in anew]
    for run in arguments.runs:
        rows.append(measure(run, arguments))
        print(table(rows[-1:]), flush=True)
        if arguments.out:
            write_record(arguments.out, "autoattack_benchmark", {"rows": rows})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--search", default="auto", choices=["auto", "bf16", "float32"])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def stored(path: Path | None) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path and path.is_file() else []


def measure(run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: every part by both, `repeats` times with another seed each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = load_model(weights_file(run, "best")).classifier.to(device)
    plain = copy.deepcopy(classifier).to(memory_format=torch.contiguous_format)
    split = load_source(arguments.data).test
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[: arguments.images]
    images, labels = as_float(split.read(chosen)).to(device), split.labels[chosen].to(device)
    with full_precision(), torch.no_grad():
        search = search_precision(arguments.search, classifier, images[:32], Linf(arguments.eps))
        right = classifier(images).argmax(1) == labels
        runs = [
            once(classifier, plain, images, labels, right, arguments.eps, seed, search) for seed in range(arguments.repeats)
        ]
    ratios = [one["package"]["seconds"] / one["ours"]["seconds"] for one in runs]
    return {
        "run": run.name,
        "data": run.name.partition("-")[0],  # not --data: the path of a file is nobody's business
        "eps": arguments.eps,
        "images": len(images),
        "clean": int(right.sum()),
        "search": search,
        "clock": "process" if device.type == "cpu" else "wall",
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "repeats": runs,
    }


def once(
    classifier: Classifier,
    plain: Classifier,
    images: Tensor,
    labels: Tensor,
    right: Tensor,
    eps: float,
    seed: int,
    search: Any,
) -> dict[str, Any]:
    stands = {"package": right.clone(), "ours": right.clone()}
    parts = []
    for number, part in enumerate(STANDARD):
        outcome: dict[str, Any] = {"part": part}
        both = [
            ("package", plain, attack_by_name(part, exact_seed=seed)),
            ("ours", classifier, attack_by_name(part, search)),
        ]
        for name, model, attack in both if (seed + number) % 2 == 0 else both[::-1]:
            rows = stands[name].nonzero()[:, 0]
            started = clock()
            if len(rows):
                _, fooled = run_attack(attack, model, images[rows], labels[rows], Linf(eps), seed)
                stands[name][rows[fooled]] = False
            outcome[name] = {"seconds": clock() - started, "attacked": len(rows), "stand": int(stands[name].sum())}
        parts.append(outcome)
    whole = {
        name: {"seconds": sum(part[name]["seconds"] for part in parts), "stand": int(stand.sum())}
        for name, stand in stands.items()
    }
    return {
        "seed": seed,
        **whole,
        "only_package_broke": int((stands["ours"] & ~stands["package"]).sum()),
        "only_ours_broke": int((stands["package"] & ~stands["ours"]).sum()),
        "parts": parts,
    }


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def table(rows: list[dict[str, Any]]) -> str:
    header = [
        "run",
        "images",
        "package, robust",
        "ours, robust",
        "only package / ours broke",
        "package / ours, seconds",
        *STANDARD,
    ]
    lines = []
    for row in rows:
        runs = row["repeats"]
        stand = {name: statistics.mean(one[name]["stand"] for one in runs) / row["images"] for name in ("package", "ours")}
        only = [sum(one[f"only_{name}_broke"] for one in runs) for name in ("package", "ours")]
        parts = [
            sum(one["parts"][place]["package"]["seconds"] for one in runs)
            / max(1e-9, sum(one["parts"][place]["ours"]["seconds"] for one in runs))
            for place in range(len(STANDARD))
        ]
        lines.append(
            [
                row["run"],
                f"{row['images']} x {len(runs)}",
                f"{stand['package']:.1%}",
                f"{stand['ours']:.1%}",
                f"{only[0]} / {only[1]}",
                f"{row['ratio']:.2f} ({min(row['ratios']):.2f} - {max(row['ratios']):.2f})",
                *(f"{ratio:.1f}" for ratio in parts),
            ]
        )
    return text_table(header, lines)


if __name__ == "__main__":
    main()
