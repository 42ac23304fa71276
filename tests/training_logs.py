"""The log of a training run as tests compare it: without what no two runs have alike."""

from __future__ import annotations

from aalp.store.records import read_csv
from aalp.store.run import RunDirectory

TIMES = {"seconds", "images_per_second"}


def rows_without_times(run: RunDirectory) -> list[dict[str, str]]:
    """The cells of metrics.csv, epoch by epoch, in the order of its columns."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_csv(run.metrics)]
