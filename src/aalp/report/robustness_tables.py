"""The tables of the robustness section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aalp.report.blocks import Table
from aalp.report.collect import Group, Run
from aalp.report.figures import Interval, interval_text, percent
from aalp.report.headline import images_of, listed, radius


def attack_table(groups: Sequence[Group], interval: Interval) -> Table | None:
    """Every attack of the evaluations that speak for the runs."""
    rows = []
    for run, name in named(groups):
        record = run.evaluation
        if record is None:
            continue
        parts = [("clean", record["clean"], None, record["images"])]
        for attack in record["attacks"]:
            parts.append((attack["name"], attack["accuracy"], attack["seconds"], attack["attacked"]))
            parts += [(f"autoattack/{p['name']}", p["accuracy"], p["seconds"], p["attacked"]) for p in attack["parts"]]
        if record["attacks"]:
            parts.append(("worst case", record["robust"], None, record["images"]))
        for attack_name, accuracy, seconds, attacked in parts:
            low, high = interval(round(accuracy * record["images"]), record["images"])
            broke = record["broken_by"].get(attack_name)
            cells = [attack_name, percent(accuracy), interval_text(low, high)]
            cells += ["" if broke is None else str(broke), "" if seconds is None else str(attacked)]
            rows.append([name, *cells, "" if seconds is None else f"{seconds:.1f}"])
    caption = "Each attack in turn. Broke first: images that this attack, in this order, was the first to break."
    header = ["model", "attack", "accuracy", "95 % interval", "broke first", "images attacked", "seconds"]
    return Table(caption, header, rows, folded=len(rows) > 12) if rows else None


def other_data_table(groups: Sequence[Group], interval: Interval) -> Table | None:
    """Evaluations of data that the runs were not trained on, besides any that the headline has to be of."""
    rows = []
    for run, name in named(groups):
        for record in run.evaluations[1:]:
            if run.of_trained_data(record):
                continue
            names = ", ".join(attack["name"] for attack in record["attacks"]) or "nothing"
            cells = [images_of(record), radius(record["threat"]), names, Path(record["weights"]).stem]
            for accuracy in (record["clean"], record["robust"]):
                if accuracy is None:
                    cells.append("-")
                    continue
                low, high = interval(round(accuracy * record["images"]), record["images"])
                cells.append(f"{percent(accuracy)} ({interval_text(low, high)})")
            rows.append([name, *cells])
    caption = "Evaluations of other data than the models were trained on. In brackets: 95 % intervals."
    header = ["model", "images", "threat", "attacked by", "weights", "clean", "robust"]
    return Table(caption, header, rows, folded=len(rows) > 12) if rows else None


def breaks_table(groups: Sequence[Group]) -> Table | None:
    """Which attack breaks what no other does, from the analyses."""
    rows = [
        [name, row["name"], percent(row["accuracy"]), str(row["breaks"]), str(row["breaks_alone"])]
        for run, name in named(groups)
        for row in (run.analysis or {}).get("attacks", ())
    ]
    caption = "Which attack of the evaluation breaks how many images; breaks alone: those that no other of its attacks breaks."
    elsewhere = [name for run, name in named(groups) if _of_another_evaluation(run)]
    if elsewhere:
        caption += f" Of another evaluation than above for {listed(elsewhere)}: aalp analyze reads the newest one."
    header = ["model", "attack", "accuracy", "breaks", "breaks alone"]
    return Table(caption, header, rows, folded=len(rows) > 12) if rows else None


def _of_another_evaluation(run: Run) -> bool:
    source, record = (run.analysis or {}).get("attacks_from"), run.evaluation
    return bool(source and record and Path(source).name != Path(record["path"]).name)


def named(groups: Sequence[Group]) -> list[tuple[Run, str]]:
    """Every run with a name that tells it from the others."""
    return [(run, group.called(run)) for group in groups for run in group.runs]
