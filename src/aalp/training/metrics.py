"""The table of a training run, metrics.csv: one row an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from aalp.errors import RunError
from aalp.store.files import write_atomically
from aalp.store.records import read_csv
from aalp.store.run import RunDirectory


def read_rows(run: RunDirectory, epochs: int) -> list[dict[str, Any]]:
    """The rows of the epochs that are done, from before the run was interrupted.

    Raises:
        RunError: the table is not readable.
    """
    if epochs == 0 or not run.metrics.is_file():
        return []
    try:
        rows = read_csv(run.metrics)[:epochs]
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"'{run.metrics}' is not a readable table: {error}; move it away to go on without it") from error
    if any(None in row or row.keys() != rows[0].keys() for row in rows):
        raise RunError(f"'{run.metrics}' has rows of different lengths: move it away to go on without it")
    return rows


def write_rows(run: RunDirectory, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the whole table; where rows have different columns, the missing ones are empty."""
    text = io.StringIO(newline="")
    columns = dict.fromkeys(column for row in rows for column in row)
    writer = csv.DictWriter(text, fieldnames=list(columns))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(run.metrics, text.getvalue().encode())
