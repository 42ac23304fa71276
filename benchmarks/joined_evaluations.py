"""Puts runs that were trained and evaluated one by one into one comparison, to be tested over their seeds.

python benchmarks/joined_evaluations.py benchmarks/results/mnist-20-epochs-three-seeds \
    benchmarks/results/mnist-20-epochs-clipped --rows aalp-kl,trades,at,mart

The folder has of each run ROW-seedN.json, as `aalp evaluate` wrote it, ROW-seedN-metrics.csv, and ROW-seedN-audit.json
where it was audited; without -seedN it is of seed 0.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aalp.commands.audit import FIRST_AUDIT
from aalp.commands.cells import Cells, outcome
from aalp.commands.comparison import markdown, summary
from aalp.store.records import write_record

LOGGED = frozenset({"conflict_rate", "train_seconds"})
"""Left out: of the trainings' logs, which machines and versions of the package write otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("folder", type=Path, help="with the runs' records")
    parser.add_argument("--rows", required=True, help="which, separated by commas")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    content = {"split": "test", **summary(found(arguments.folder, rows), rows)}
    arguments.out.mkdir()
    command = shlex.join(["python", "benchmarks/joined_evaluations.py", *sys.argv[1:]])
    record = write_record(arguments.out / "comparison.json", "comparison", {"command": command, **content})
    (arguments.out / "comparison.md").write_text(markdown(record))


def found(folder: Path, rows: list[str]) -> list[dict[str, Any]]:
    """The cells of all runs of these rows.

    Raises:
        SystemExit: a row has no record there, or they measured differently.
    """
    cells = []
    for row in rows:
        named = re.compile(rf"{re.escape(row)}(?:-seed(\d+))?")
        seeds = {path: match for path in folder.glob("*.json") if (match := named.fullmatch(path.stem))}
        if not seeds:
            raise SystemExit(f"'{folder}' has no {row}.json and no {row}-seedN.json")
        cells += [_cell(path, row, int(match[1] or 0)) for path, match in sorted(seeds.items())]
    measured = {(cell["images"], str(cell["threat"]), *sorted(cell["attack_seconds"])) for cell in cells}
    if len(measured) > 1:
        raise SystemExit(f"give records of the same evaluation: these are of {measured}")
    return cells


def _cell(path: Path, row: str, seed: int) -> dict[str, Any]:
    """A run's cell, from its records laid out as a comparison has them."""
    with tempfile.TemporaryDirectory() as place:
        evaluation = {row: {"evaluation": SimpleNamespace(split="test")}}
        cells = Cells(Path(place), evaluation, (seed,))
        directory = cells.directory(row, seed)
        audit = path.with_name(f"{path.stem}-audit.json")
        for source, target in (
            (path, directory.evaluations / "test.json"),
            (path.with_name(f"{path.stem}-metrics.csv"), directory.metrics),
            (audit, directory.audits / FIRST_AUDIT),
        ):
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        cell = outcome(cells, row, seed)
        return {**cell, "figures": {name: value for name, value in cell["figures"].items() if name not in LOGGED}}


if __name__ == "__main__":
    main()
