"""`aalp report`: one HTML file on one run, or on several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aalp.commands.comparison import judged_anew, rows_apart, sentences, unfinished
from aalp.commands.config import check_one_run, quoted
from aalp.commands.console import command_line, print_out
from aalp.commands.yaml_file import read_yaml
from aalp.errors import RunError
from aalp.evaluation.robustness import wilson_interval
from aalp.report.collect import Group, group_runs, read_run
from aalp.report.export import check_export, export
from aalp.report.headline import listed
from aalp.report.page import figures_of, render
from aalp.report.sections import sections
from aalp.store.files import write_atomically
from aalp.store.records import read_record
from aalp.store.run import RunDirectory, free_path


def report(runs: list[Path], out: Path | None = None, figures: Path | None = None, title: str | None = None) -> None:
    """Write a report that opens in any browser and needs nothing else: figures, tables, images, options, commands.

    It reads what train, evaluate, audit and analyze left in the runs, and says which of these to run for what is missing.

    Args:
        runs: run directories, or a comparison that `aalp compare` made; runs that differ in nothing but the seed are one model.
        out: HTML file to write; by default RUN/report.html for one run, runs/report-NNN.html for several.
        figures: folder to write each figure to as SVG and PNG too; needs the extra `figures` and a Chrome or Chromium.
        title: title of the page.
    """
    paths, comparison = _expand(runs)
    found = [read_run(path, read_yaml(RunDirectory.open(path).config)) for path in paths]
    groups = group_runs(found)
    if out is not None and out.exists():
        raise RunError(f"'{out}' exists already: choose another --out")
    if figures is not None:
        check_export(figures)
    parts = sections(groups, wilson_interval, _observations(paths), command_line())
    told = _told(comparison, paths) if comparison else []
    page = render(groups, parts, wilson_interval, title or _title(groups), told)
    target = out or _free(runs)
    write_atomically(target, page.encode())
    if figures is not None:
        export(figures_of(parts), figures)
        print_out(f"figures: {figures}", {"figures": str(figures)})
    print_out(f"report: {target}", {"path": str(target)})


def _expand(paths: Sequence[Path]) -> tuple[list[Path], Mapping[str, Any] | None]:
    """The run directories that the words stand for: a comparison stands for its cells; and its record, if it is alone."""
    found: list[Path] = []
    for path in paths:
        cells = _cells(path)
        found += cells or [path]
    record = paths[0] / "comparison.json"
    alone = len(paths) == 1 and record.is_file()
    return list(dict.fromkeys(found)), judged_anew(read_record(record, "comparison")) if alone else None


def _cells(path: Path) -> list[Path]:
    """The runs inside a comparison, in the order of its table; none in a run.

    Raises:
        RunError: it is a search, whose trials are to be named one by one, or a comparison without any run.
    """
    config = read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {"objective": None}
    if "objective" in config:
        check_one_run(path, config)
        return []
    cells = [config.parent for config in path.glob("*/config.yaml")]
    if not cells:
        raise RunError(f"'{path}' is a comparison without runs yet: continue it with `aalp compare --run {quoted(path)}`")
    record = path / "comparison.json"
    rows = list(read_record(record, "comparison")["table"]) if record.is_file() else []
    return sorted(cells, key=lambda cell: _place(cell.name, rows))


def _place(name: str, rows: Sequence[str]) -> tuple[int, str, int]:
    """Where a run of a comparison stands: by its row, those of the table first, then by its seed."""
    row, _, seed = name.rpartition("-seed")
    return rows.index(row) if row in rows else len(rows), row or name, int(seed) if seed.isdecimal() else 0


def _told(comparison: Mapping[str, Any], paths: Sequence[Path]) -> list[str]:
    """What a comparison's record says of differences, and first of which runs on the page it says nothing."""
    known = {f"{cell['objective']}-seed{cell['seed']}" for cell in comparison["cells"]} | {*comparison.get("left", ())}
    others = [path.name for path in paths if path.name not in known]
    apart = (
        [
            f"The differences below leave out {listed(others)}: they are of the rows and seeds that the last aalp compare here "
            "named, which compares all runs where it names all of them"
        ]
        if others
        else []
    )
    return [*apart, *unfinished(comparison), *sentences(comparison), *rows_apart(comparison)]


def _observations(paths: Sequence[Path]) -> dict[str, Any] | None:
    """The record of `aalp analyze` on just these runs together of the most images, the newest; beside them or above them."""
    names = sorted(path.resolve().name for path in paths)
    records = []
    for folder in dict.fromkeys(place for path in paths for place in (path.resolve().parent, path.resolve())):
        for file in folder.glob("observations*.json"):
            record = read_record(file, "observations")
            if sorted(Path(run["name"]).name for run in record["runs"]) == names:
                records.append(record)
    return max(records, key=lambda record: (record.get("images", 0), str(record["created"])), default=None)


def _free(paths: Sequence[Path]) -> Path:
    """A path that is not taken: in the run itself, or in runs/ for several."""
    if len(paths) > 1:
        return free_path(Path("runs"), "report", ".html")
    first = paths[0] / "report.html"
    number = 2
    while first.exists():
        first = paths[0] / f"report-{number:03d}.html"
        number += 1
    return first


def _title(groups: Sequence[Group]) -> str:
    data = {str(run.config.get("data", "own data")) for group in groups for run in group.runs}
    short = Path((one := data.pop()).partition(":")[2] or one).stem if len(data) == 1 else "several data sets"
    if len(groups) == 1:
        return f"{groups[0].name} on {short}"
    names = [group.name for group in groups]
    return f"{', '.join(names[:-1])} and {names[-1]} on {short}" if len(names) < 6 else f"{len(names)} models of {short}"
