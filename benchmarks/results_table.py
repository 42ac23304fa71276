"""Prints the committed evaluations and comparisons as Markdown tables: no figure in the docs is typed by hand.

python benchmarks/results_table.py benchmarks/results/*/
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from aalp.commands.comparison import judged_anew, markdown
from aalp.commands.tables import markdown_table
from aalp.evaluation.robustness import wilson_interval
from aalp.store.records import read_record

TRAINING_TIME = Path(__file__).parent / "results" / "training_time.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of evaluation records")
    folders = parser.parse_args().folders
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    evaluations = [path for path in paths if json.loads(path.read_text())["kind"] == "evaluation"]
    header = ["data, eps", "model", "objective", "test images", "clean", "PGD", "C&W", "AutoAttack (95 % interval)", "n90"]
    rows = [[*row(read_record(path, "evaluation")), f"{path.parent.name}/{path.stem}"] for path in evaluations]
    print(markdown_table([*header, "record"], rows))
    for path in paths:
        if path.stem == "comparison":
            print(f"\n{path.parent.name}: {markdown(judged_anew(read_record(path, 'comparison')))}")
    print(training_time(read_record(TRAINING_TIME, "training_time_benchmark")))


def training_time(record: dict[str, Any]) -> str:
    names = list(record["rows"][0]["over_at"])
    cells = [
        [f"{row['data']}, {row['model']}, PGD-{row['steps']}", *(f"{row['over_at'][n]:.2f}" for n in names)]
        for row in record["rows"]
    ]
    return "Training time relative to AT, a step beside AT's:\n\n" + markdown_table(["data, model, attack", *names], cells)


def shown(accuracy: float, images: int) -> str:
    low, high = wilson_interval(round(accuracy * images), images)
    return f"{accuracy:.1%} ({low:.1%} - {high:.1%})"


def row(record: dict[str, Any]) -> list[str]:
    accuracy = {attack["name"].partition("-")[0]: f"{attack['accuracy']:.1%}" for attack in record["attacks"]}
    robust = shown(record["robust"], record["images"])
    whole = [shown(attack["accuracy"], record["images"]) for attack in record["attacks"] if attack["name"] == "autoattack"]
    if whole:
        judged = whole[0] if whole[0] == robust else f"{whole[0]}; worst case of all {robust}"
    else:
        judged = f"not run; {' and '.join(attack['name'] for attack in record['attacks'])} {robust}"
    return [
        f"{Path(record['data']['name'].partition(':')[2]).stem}, {record['threat']['eps']:.4g}",
        record["model"]["model"],
        record["model"]["objective"],
        str(record["images"]),
        f"{record['clean']:.1%}",
        accuracy.get("pgd", ""),
        accuracy.get("cw", ""),
        judged,
        f"{record['measures']['n90']:.1f}",
    ]


if __name__ == "__main__":
    main()
