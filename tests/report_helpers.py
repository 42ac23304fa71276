"""Run directories with every record in them, by the shape that evaluate, audit and analyze give; nothing is trained."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import yaml

from aalp.report.collect import Group, group_runs, read_run
from aalp.store.checkpoint import write_tensors
from aalp.store.records import write_record

EVIL = "<script>alert(1)</script>"
CLASSES = ["cat & dog", EVIL, '"quoted"', "</title><b>bold</b>"]
THREAT = {"norm": "Linf", "eps": 8 / 255}
IMAGES = 40


def make_run(
    path: Path,
    objective: str = "aalp",
    seed: int = 0,
    robust: float = 0.5,
    audit: str | None = "pass",
    analysis: bool = True,
    classes: list[str] | None = None,
    **options: Any,
) -> Path:
    """A run directory; `robust` is a multiple of 1/40."""
    classes = classes or CLASSES
    path.mkdir(parents=True)
    config = {"data": "folder:pets", "model": "small-cnn", "objective": objective, "seed": seed}
    config |= {"threat": {"norm": "linf", "eps": "8/255"}, "training": {"epochs": 5, "validation_steps": 10}}
    config |= {"evaluation": {"weights": "best"}, **options}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_metrics(path / "metrics.csv")
    write_evaluation(path, "test", robust)
    if audit:
        write_audit(path, audit)
    if analysis:
        write_analysis(path, robust, classes)
    return path


def groups_of(*paths: Path) -> list[Group]:
    """Run directories as a report takes them."""
    return group_runs([read_run(path, yaml.safe_load((path / "config.yaml").read_text())) for path in paths])


def write_metrics(path: Path, epochs: int = 5) -> None:
    names = ("loss", "conflict_rate", "conflict_rate_clean", "misclassified_share", "train_accuracy")
    names += ("validation_clean", "validation_robust", "weight_mean", "weight_low", "weight_median", "weight_high")
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["epoch", *names])
        # A cell is empty or nan where an epoch has no such figure.
        table.writerow([1, 2.3, "", *["nan"] * (len(names) - 2)])
        for epoch in range(2, epochs + 1):
            table.writerow([epoch, *(round((at + epoch) / 20, 3) for at in range(len(names)))])


def write_evaluation(path: Path, name: str, robust: float, **changes: Any) -> dict[str, Any]:
    parts = [{"name": n, "accuracy": robust, "attacked": 36, "seconds": 1.5} for n in ("apgd-ce", "apgd-t", "fab-t", "square")]
    attacks = [
        {"name": "pgd-20", "accuracy": robust + 0.05, "attacked": 40, "seconds": 0.5, "settings": {}, "parts": []},
        {"name": "autoattack", "accuracy": robust, "attacked": 36, "seconds": 6.0, "settings": {}, "parts": parts},
    ]
    content = {
        "weights": f"{path}/weights/best.safetensors",
        "command": f"aalp evaluate {path}",
        "images": IMAGES,
        "clean": 0.9,
        "robust": robust,
        "intervals": {"clean": [0.77, 0.96], "robust": [max(0.0, robust - 0.15), min(1.0, robust + 0.15)]},
        "attacks": attacks,
        "broken_by": {"clean": 4, "pgd-20": 14, "autoattack/apgd-ce": 2},
        "measures": {"on": "pgd-20", "n90": 20.0},
        "threat": THREAT,
        "seed": 0,
        "batch_size": 250,
        "data": {"name": "folder:pets", "split": "test", "digest": "d" * 64, "split_images": 80},
        "model": {"model": "small-cnn", "objective": "aalp", "epoch": 5, "seed": 0, "parameters": 12345},
        **changes,
    }
    return write_record(path / "evaluations" / f"{name}.json", "evaluation", content)


def gate(name: str, passed: bool | None) -> dict[str, Any]:
    return {
        "name": name,
        "source": "arXiv 1902.06705",
        "passed": passed,
        "measured": None if passed is None else 0.25,
        "limit": 0.5,
        "rule": f"{EVIL} at most 0.5",
        "meaning": "what it means",
        "remedy": "what to do about it",
        "detail": "what was seen",
        "seconds": 1.0,
    }


def write_audit(path: Path, verdict: str, number: int = 1, **changes: Any) -> None:
    content = {
        "weights": f"{path}/weights/best.safetensors",
        "command": f"aalp audit {path}",
        "images": IMAGES,
        "thorough": False,
        "seed": 0,
        "threat": THREAT,
        "data": {"name": "folder:pets", "split": "test"},
        "model": {},
        "verdict": verdict,
        "clean": 0.9,
        "gates": [gate("output is logits", True), gate("unbounded attack wins", verdict != "fail"), gate("gap", None)],
        "seconds": 9.0,
        **changes,
    }
    write_record(path / "audits" / f"best-{number:03d}.json", "audit", content)


def write_analysis(path: Path, robust: float, classes: list[str], number: int = 1, shape: tuple[int, ...] = (3, 8, 8)) -> None:
    folder = path / "analyses" / f"best-{number:03d}"
    count = len(classes)
    concentration = {"curve": [0.3, 0.7, 1.0], "curve_features": [1, 4, 64], "n90": 20.5, "effective_number": 9.5, "gini": 0.8}
    sides = {side: {"predicted": concentration, "true": concentration} for side in ("clean", "adversarial")}
    labels = [at % count for at in range(6)]
    content = {
        "weights": f"{path}/weights/best.safetensors",
        "command": f"aalp analyze {path}",
        "images": IMAGES,
        "seed": 0,
        "attack": "pgd-20",
        "threat": THREAT,
        "classes": classes,
        "data": {"name": "folder:pets", "split": "test", "digest": "d" * 64, "split_images": 80},
        "model": {},
        "features": 64,
        "contributions": sides,
        "top_k": [{"k": k, "clean": 0.8, "robust": robust} for k in (1, 8, 64)],
        "eps_curve": [{"eps": eps, "accuracy": max(0.0, 0.9 - 10 * eps)} for eps in (0.0, 4 / 255, 8 / 255, 16 / 255, 1.0)],
        "eps_curve_attack": "cw-20",
        "per_class": [{"name": name, "images": 10, "clean": 0.9, "robust": robust} for name in classes],
        "confusion": [[6 if i == j else 1 for j in range(count)] for i in range(count)],
        "attacks": [{"name": "pgd-20", "accuracy": robust, "breaks": 14, "breaks_alone": 1}],
        "training": [],
        "conflict": {"rate": 0.125, "rate_clean": 0.5, "misclassified_share": 0.25},
        "gallery": {
            "file": "gallery.safetensors",
            "labels": labels,
            "clean_predictions": [*labels[:5], (labels[5] + 1) % count],
            "adversarial_predictions": [(labels[0] + 1) % count, *labels[1:]],
            "attack": "pgd-20",
        },
    }
    clean = torch.rand((6, *shape), generator=torch.Generator().manual_seed(number))
    adversarial = (clean + 8 / 255).clamp(0, 1)
    write_tensors(folder / "gallery.safetensors", {"clean": clean, "adversarial": adversarial}, {"kind": "gallery"})
    write_record(folder / "analysis.json", "analysis", content)


def write_observations(folder: Path, runs: list[Path]) -> None:
    found = [
        {"number": number, "claim": "c", "holds": holds, "sentence": f"sentence {number} {holds} {EVIL}", "figures": {}}
        for number in (1, 2)
        for holds in (True, False, None)
    ]
    content = {
        "command": "aalp analyze",
        "images": IMAGES,
        "runs": [{"name": run.name, "path": str(run), "objective": "aalp", "seed": 0} for run in runs],
        "observations": found,
        "summary": ["Observation 1: 1 of 2 statements hold.", "Observation 2: 1 of 2 statements hold."],
    }
    write_record(folder / "observations.json", "observations", content)
