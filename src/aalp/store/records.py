"""Records: one JSON a result, one Parquet table a per-image result, each with what is needed to judge and repeat it."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aalp.errors import RunError
from aalp.store.files import write_atomically

SCHEMA = 1
PACKAGES = ("aalp", "torch", "torchvision", "timm", "pyautoattack", "lightning-fabric", "numpy", "scikit-learn")


def write_record(path: Path, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON record with its schema version, time and environment, atomically; returns what was written."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record = {"schema": SCHEMA, "kind": kind, "created": now, **content, "environment": environment()}
    write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    return record


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """A record of this kind.

    Raises:
        RunError: the file is missing, not JSON, or another kind or schema.
    """
    try:
        record = json.loads(path.read_bytes())
        found = record["schema"], record["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{path}' is not a readable record: {error}; move it away, and make it anew") from error
    if found != (SCHEMA, kind):
        what = f"kind '{found[1]}' and schema {found[0]}, and this aalp reads '{kind}' and {SCHEMA} there"
        raise RunError(f"'{path}' is a record of {what}: use the aalp version that wrote it, or move it away")
    return dict(record)


def split_size(data: Mapping[str, Any]) -> int | None:
    """How many images the split has, by a record's `data`; audits and the oldest evaluations have the test split's alone."""
    found: int | None = data.get("split_images", data.get("test_images"))
    return found


def same_threat(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two threats, as records and weights tell them, are known and the same; norms are written in two ways."""
    if not {"norm", "eps"} <= one.keys() & other.keys():
        return False
    return str(one["norm"]).lower() == str(other["norm"]).lower() and math.isclose(float(one["eps"]), float(other["eps"]))


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length as a Parquet table, atomically."""
    import pyarrow  # heavy, and only needed when a table is written
    from pyarrow import parquet

    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(dict(columns)), buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())


def read_table(path: Path) -> dict[str, list[Any]]:
    """The columns of a Parquet table.

    Raises:
        RunError: the file is missing or not one.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise RunError(f"'{path}' is not a readable table: {error}; move it and its record away, and make them anew") from error
    return columns


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length as a CSV table, atomically; None becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomically(path, text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str | Any, str | Any]]:
    """The rows of a CSV table by column, as text; None has the cells beyond the header. Callers say what an error means.

    Raises:
        OSError, ValueError, csv.Error: the file is missing, or is not one.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def environment() -> dict[str, Any]:
    """Versions, commit and hardware that a result was made with."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.system(),
        "versions": versions(),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a figure depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, marked when there are changes; None when installed."""
    folder = Path(__file__).resolve().parent
    # Only its own: where it is installed, the repository around may be that of the user's project, with the environment in it.
    if not (folder.parents[2] / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
