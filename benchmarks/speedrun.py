"""Minutes of training to a given AutoAttack accuracy, for each recipe.

    python benchmarks/speedrun.py --config digits --target 0.6 --epochs 10,20,40 --images 200
    python benchmarks/speedrun.py --config cifar10 --target 0.5 --epochs 10,15,20,30      # on a GPU: the full test split

A recipe is a way to attack in training: that of the configuration itself (`pgd`), and those of the fast presets
(`cifar10-fgsm-rs`, `cifar10-n-fgsm`, `cifar10-short-pgd`), which are laid over the configuration. Since the learning
rate has to come down before a network is any good, a recipe is trained anew with each number of epochs, the fewest
first, until one reaches the target. Every trial is counted and recorded, also those that do not. The minutes are those
of training alone, validation after each epoch included, from the run's own log; AutoAttack is the standard version.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from aalp.commands.tables import text_table
from aalp.parsing import presets
from aalp.store.records import read_record, write_record

RECIPES = {"pgd": None, "short-pgd": "cifar10-short-pgd", "n-fgsm": "cifar10-n-fgsm", "fgsm-rs": "cifar10-fgsm-rs"}
"""Recipe, and the preset that its attack is taken from."""


def main() -> None:
    arguments = parse()
    trials: list[dict[str, Any]] = []
    for recipe in arguments.recipes.split(","):
        for epochs in sorted(map(int, arguments.epochs.split(","))):
            trials.append(trial(recipe, epochs, arguments))
            print(line(trials[-1]), file=sys.stderr, flush=True)
            if trials[-1]["autoattack"] >= arguments.target:
                break
    record = {"config": arguments.config, "target": arguments.target, "objective": arguments.objective, "trials": trials}
    print(table(record))
    if arguments.out:
        write_record(arguments.out, "speedrun_benchmark", record)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="digits", help="preset or YAML file: data, model, threat, schedule")
    parser.add_argument("--data", help="as for `aalp train`, in place of the configuration's")
    parser.add_argument("--objective", default="at")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="separated by commas")
    parser.add_argument("--epochs", default="10,20,40", help="lengths of training to try, separated by commas")
    parser.add_argument("--target", type=float, default=0.5, help="AutoAttack accuracy to reach, in [0, 1]")
    parser.add_argument("--images", type=int, help="test images, drawn by a fixed seed; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/speedrun"), help="new directory for the runs")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def trial(recipe: str, epochs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training and its evaluation, through the command line as a user would."""
    run = arguments.runs / f"{recipe}-{epochs}"
    words = ["train", "--config", arguments.config, "--objective", arguments.objective, "--seed", str(arguments.seed)]
    words += ["--run", str(run), "--training.epochs", str(epochs), "--evaluate", "--evaluation.attacks", "autoattack"]
    words += ["--evaluation.images", str(arguments.images) if arguments.images else "null"]
    words += ["--data", arguments.data] if arguments.data else []
    words += attack_of(recipe)
    # Every warning of the run is about the trial: what it says goes into the record as well.
    done = subprocess.run([sys.executable, "-m", "aalp", *words, "--quiet"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{recipe}, {epochs} epochs: {done.stderr.strip()}")
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    evaluation = read_record(run / "evaluations" / "test.json", "evaluation")
    return {
        "recipe": recipe,
        "epochs": epochs,
        "minutes": float(rows[-1]["seconds"]) / 60,
        "images_per_second": sum(float(row["images_per_second"]) for row in rows) / len(rows),
        "attack_steps_at_the_end": float(rows[-1]["attack_steps"]),
        "clean": evaluation["clean"],
        "autoattack": next(attack["accuracy"] for attack in evaluation["attacks"] if attack["name"] == "autoattack"),
        "images": evaluation["images"],
        "said": [text for text in done.stderr.splitlines() if text.startswith("aalp: ")],
    }


def attack_of(recipe: str) -> list[str]:
    """The options of the recipe's preset."""
    preset = RECIPES[recipe]
    attack = yaml.safe_load(presets()[preset].read_text())["attack"] if preset else {}
    return [word for name, value in attack.items() for word in (f"--attack.{name}", json.dumps(value))]


def line(trial: dict[str, Any]) -> str:
    return (
        f"{trial['recipe']}, {trial['epochs']} epochs: {trial['minutes']:.2f} minutes, {trial['clean']:.1%} clean, "
        f"{trial['autoattack']:.1%} AutoAttack" + "".join(f"; {text}" for text in trial["said"])
    )


def table(record: dict[str, Any]) -> str:
    header = ["recipe", "epochs", "minutes", "images/s", "clean", "AutoAttack", f"reaches {record['target']:.0%}", "fell back"]
    rows = []
    for trial in record["trials"]:
        reaches, fell = ("yes" if true else "no" for true in (trial["autoattack"] >= record["target"], trial["said"]))
        accuracies = f"{trial['clean']:.1%}", f"{trial['autoattack']:.1%}"
        speed = f"{trial['minutes']:.2f}", f"{trial['images_per_second']:.0f}"
        rows.append([trial["recipe"], str(trial["epochs"]), *speed, *accuracies, reaches, fell])
    return text_table(header, rows)


if __name__ == "__main__":
    main()
