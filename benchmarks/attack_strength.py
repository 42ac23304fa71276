"""How far an attack gets by steps that fall, and by as many equal ones: what `--attack.step_size` is by default, and why.

    python benchmarks/attack_strength.py runs/digits-at runs/mnist-at --out benchmarks/results/attack_strength.json
    python benchmarks/attack_strength.py runs/digits-at --norm l2 --eps 1

On held-out validation images of each run, in float32, both from the same random starts: the mean cross-entropy that
`aalp.perturb` reaches, and the accuracy it leaves, by number of steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import aalp
from aalp.commands.loading import load_model, weights_file
from aalp.commands.opening import chosen_images, run_config, stored_source, stored_threat
from aalp.commands.tables import text_table
from aalp.data.split import Split, as_float
from aalp.method.losses import cross_entropy, misclassified
from aalp.method.pgd import equal_step
from aalp.method.threat import Threat
from aalp.store.records import write_record

STEPS = (1, 2, 3, 5, 7, 10, 20, 40)
BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs that held validation images out")
    parser.add_argument("--norm", choices=["linf", "l2"], help="with --eps, in place of the run's threat")
    parser.add_argument("--eps", type=float)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [row for run in arguments.runs for row in measured(run, arguments.norm, arguments.eps, arguments.images)]
    header = ["data", "objective", "threat", "steps", "loss, falling", "equal", "accuracy, falling", "equal"]
    print(text_table(header, [shown(row) for row in rows]))
    if arguments.out:
        write_record(arguments.out, "attack_strength_benchmark", {"rows": rows})


def measured(run: Path, norm: str | None, eps: float | None, count: int) -> list[dict[str, Any]]:
    """A row for each number of steps."""
    config, loaded = run_config(run), load_model(weights_file(run, "last"))
    source = stored_source(None, None, config)
    threat = stored_threat(norm, eps, loaded, config).build()
    _, split = chosen_images(loaded, source, "validation", count)
    about = {"data": source.name.rpartition("/")[2], "objective": loaded.metadata["objective"], "seed": loaded.metadata["seed"]}
    about |= {"epochs": loaded.metadata["epoch"], "norm": threat.norm, "eps": threat.eps, "images": len(split)}
    sizes: dict[str, float | None]
    rows = []
    for steps in STEPS:
        sizes = {"falling": None, "equal": equal_step(steps) * threat.eps}
        reached = {name: attacked(loaded.classifier, split, threat, steps, size) for name, size in sizes.items()}
        rows.append({**about, "steps": steps, **reached})
    return rows


def attacked(classifier: aalp.Classifier, split: Split, threat: Threat, steps: int, size: float | None) -> dict[str, float]:
    """Mean loss and accuracy under so many steps of this size, or under falling ones."""
    loss = right = 0.0
    for first in range(0, len(split), BATCH):
        rows = torch.arange(first, min(first + BATCH, len(split)))
        images, labels = as_float(split.read(rows)), split.labels[rows]
        generator = torch.Generator().manual_seed(first)
        adversarial = aalp.perturb(classifier, images, labels, threat, steps, size, generator=generator)
        with torch.no_grad():
            logits = classifier(adversarial)
        loss += float(cross_entropy(logits, labels).sum())
        right += float((~misclassified(logits, labels)).sum())
    return {"loss": loss / len(split), "accuracy": right / len(split)}


def shown(row: dict[str, Any]) -> list[str]:
    found = [row["falling"], row["equal"]]
    figures = [f"{each['loss']:.3f}" for each in found] + [f"{each['accuracy']:.1%}" for each in found]
    return [row["data"], row["objective"], f"{row['norm']} {row['eps']:.4g}", str(row["steps"]), *figures]


if __name__ == "__main__":
    main()
