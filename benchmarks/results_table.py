"""Prints the committed results as Markdown tables, from their records alone: no figure in the docs is typed by hand.

python benchmarks/results_table.py                          # one table of the main comparisons
python benchmarks/results_table.py benchmarks/results/*/    # every evaluation and comparison
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from aalp.commands.comparison import judged_anew, markdown, table_rows
from aalp.commands.tables import markdown_table
from aalp.evaluation.robustness import wilson_interval
from aalp.store.records import read_record

RESULTS = Path(__file__).parent / "results"

MAIN = {
    "digits": "digits",
    "MNIST, 20 epochs": "mnist-20-epochs-seeds",
    "MNIST, 5 epochs": "mnist-5-epochs-seven",
    "CIFAR-10, 3 epochs": "cifar10-3-epochs",
}
"""The comparisons that the main table is of, by what it calls their data."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of records, to print each of them")
    folders = parser.parse_args().folders
    if not folders:
        print(main_table())
        return
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    evaluations = [path for path in paths if json.loads(path.read_text())["kind"] == "evaluation"]
    header = ["data, eps", "model", "objective", "test images", "clean", "PGD", "C&W", "AutoAttack (95 % interval)", "n90"]
    rows = [[*row(read_record(path, "evaluation")), f"{path.parent.name}/{path.stem}"] for path in evaluations]
    print(markdown_table([*header, "record"], rows))
    for path in paths:
        if path.stem == "comparison":
            print(f"\n{path.parent.name}: {markdown(judged_anew(read_record(path, 'comparison')))}")


LEGEND = (
    "Accuracy in percent, mean +- standard deviation over seeds; n90 in features; time of a training step beside AT's "
    "(training_time.json). <= where AutoAttack was not run: what withstands APGD-CE and APGD-T, an upper bound. * another "
    "figure than that of aalp, or of the first aalp-kl, at 95 % (paired t test over seeds, each column by itself)."
)


def main_table() -> str:
    """What each objective of the main comparisons comes to."""
    time = read_record(RESULTS / "training_time.json", "training_time_benchmark")["rows"]
    header = ["data", "objective", "seeds", "test images", "clean", "PGD", "C&W", "AutoAttack", "n90", "conflict rate", "audit"]
    rows = []
    for data, folder in MAIN.items():
        record = judged_anew(read_record(RESULTS / folder / "comparison.json", "comparison"))
        names, lines = table_rows(record)
        pgd = next((name for name in names if name.startswith("pgd")), "pgd")
        over_at = next(row["over_at"] for row in time if data.lower().replace("-", "").startswith(row["data"]))
        for line in lines:
            has = dict(zip(names, line, strict=True))
            cells = [cell for cell in record["cells"] if cell["objective"] == line[0]]
            judged = has.get("autoattack") or f"<= {has['robust']}"
            figures = [has["clean"], has.get(pgd, ""), has.get("cw-40", ""), judged, has["n90"], has.get("conflict_rate", "")]
            share = f"{over_at[line[0]]:.2f}" if line[0] in over_at else ""
            rows.append([data, line[0], str(len(cells)), str(cells[0]["images"]), *figures, has["audit"], share])
    return f"{LEGEND}\n\n{markdown_table([*header, 'time'], rows)}"


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
