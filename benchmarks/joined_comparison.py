"""Puts rows of several comparisons with the same evaluation into one record, to be tested over all seeds.

python benchmarks/joined_comparison.py benchmarks/results/cifar10-3-epochs-six-seeds \
    benchmarks/results/cifar10-3-epochs benchmarks/results/cifar10-3-epochs-more --rows aalp,alp

A difference is taken seed by seed, so all rows of a seed should be of one kind of processor: bf16 rounds differently elsewhere.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aalp.commands.comparison import markdown, summary
from aalp.store.records import read_record, write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a comparison.json")
    parser.add_argument("--rows", required=True, help="which, separated by commas")
    arguments = parser.parse_args()
    records = [read_record(folder / "comparison.json", "comparison") for folder in arguments.folders]
    content = joined(records, arguments.rows.split(","))
    arguments.out.mkdir()
    command = shlex.join(["python", "benchmarks/joined_comparison.py", *sys.argv[1:]])
    record = write_record(arguments.out / "comparison.json", "comparison", {"command": command, **content})
    (arguments.out / "comparison.md").write_text(markdown(record))


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
