"""Puts rows of several comparisons with the same evaluation into one record, to be tested over all seeds.

python benchmarks/joined_comparison.py benchmarks/results/cifar10-3-epochs-six-seeds \
    benchmarks/results/cifar10-3-epochs benchmarks/results/cifar10-3-epochs-more --rows aalp,alp

A difference is taken seed by seed, so all rows of a seed should be of one kind of processor: bf16 rounds differently elsewhere.

A folder without a comparison.json has runs that were trained and evaluated one by one: of each ROW-seedN.json, as
`aalp evaluate` wrote it, ROW-seedN-metrics.csv, and ROW-seedN-audit.json where it was audited; without -seedN it is of seed 0.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aalp.commands.audit import FIRST_AUDIT
from aalp.commands.cells import Cells, outcome
from aalp.commands.comparison import markdown, summary
from aalp.store.records import read_record, write_record

LOGGED = frozenset({"conflict_rate", "train_seconds"})
"""Of the trainings' logs, which machines and versions write otherwise: left out of runs that were made one by one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a comparison.json, or with the records of runs")
    parser.add_argument("--rows", required=True, help="which, separated by commas")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    content = joined([recorded(folder, rows) for folder in arguments.folders], rows)
    arguments.out.mkdir()
    command = shlex.join(["python", "benchmarks/joined_comparison.py", *sys.argv[1:]])
    record = write_record(arguments.out / "comparison.json", "comparison", {"command": command, **content})
    (arguments.out / "comparison.md").write_text(markdown(record))


def recorded(folder: Path, rows: Sequence[str]) -> Mapping[str, Any]:
    """A folder's comparison, or that of its runs of these rows."""
    path = folder / "comparison.json"
    return read_record(path, "comparison") if path.is_file() else {"split": "test", "cells": cells_of_runs(folder, rows)}


def cells_of_runs(folder: Path, rows: Sequence[str]) -> list[dict[str, Any]]:
    """The cells of all runs of these rows, of which each has its records in the folder."""
    cells = []
    for row in rows:
        named = re.compile(rf"{re.escape(row)}(?:-seed(\d+))?")
        runs = {path: match for path in sorted(folder.glob("*.json")) if (match := named.fullmatch(path.stem))}
        cells += [_cell(path, row, int(match[1] or 0)) for path, match in runs.items()]
    return cells


def _cell(path: Path, row: str, seed: int) -> dict[str, Any]:
    """A run's cell, from its records laid out as a comparison has them."""
    with tempfile.TemporaryDirectory() as place:
        cells = Cells(Path(place), {row: {"evaluation": SimpleNamespace(split="test")}}, (seed,))
        directory = cells.directory(row, seed)
        for source, target in (
            (path, directory.evaluations / "test.json"),
            (path.with_name(f"{path.stem}-metrics.csv"), directory.metrics),
            (path.with_name(f"{path.stem}-audit.json"), directory.audits / FIRST_AUDIT),
        ):
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        cell = outcome(cells, row, seed)
    return {**cell, "figures": {name: value for name, value in cell["figures"].items() if name not in LOGGED}}


def joined(records: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> dict[str, Any]:
    """One comparison of the rows' cells in all records.

    Raises:
        SystemExit: a row has the same seed in two of them, a row is in none, or they measured differently.
    """
    cells = [cell for record in records for cell in record["cells"] if cell["objective"] in rows]
    names = [(cell["objective"], cell["seed"]) for cell in cells]
    if len(set(names)) < len(names) or {*rows} - {name for name, _ in names}:
        raise SystemExit(
            f"give comparisons that have each of the rows {', '.join(rows)}, with other seeds each: these have {names}"
        )
    measured = {(cell["images"], str(cell["threat"]), *sorted(cell["attack_seconds"])) for cell in cells}
    splits = {record["split"] for record in records}
    if len(measured) > 1 or len(splits) > 1:
        raise SystemExit(f"give comparisons with the same evaluation: these are of {measured} on {splits}")
    return {"split": splits.pop(), **summary(cells, rows)}


if __name__ == "__main__":
    main()
