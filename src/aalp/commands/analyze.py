"""`aalp analyze`: the paper's two observations and the robustness breakdown of runs, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from aalp.analysis.observations import Measured, figures_of, group_figures, left_out, observe, show_spread, steps_of, summary
from aalp.analysis.pairs import ATTACK
from aalp.commands.config import quoted
from aalp.commands.console import Display, command_line, print_out
from aalp.commands.loading import weights_file
from aalp.commands.opening import run_config
from aalp.commands.run_analysis import analysis_of, columns_of
from aalp.commands.tables import text_table
from aalp.commands.yaml_file import read_yaml
from aalp.data.sources import Source
from aalp.errors import OptionError, RunError
from aalp.method.objectives import OBJECTIVES
from aalp.report.collect import grouped, how_far, without_seed
from aalp.report.figures import counted
from aalp.store.files import alone_in
from aalp.store.records import read_record, write_csv, write_record, write_table
from aalp.store.run import RunDirectory, free_path


def analyze(
    runs: list[Path],
    images: int = 1000,
    weights: Literal["best", "last"] = "best",
    out: Path | None = None,
    quiet: bool = False,
    trust_model_code: bool = False,
) -> None:
    """Measure the paper's two observations and the robustness in detail, and say in words what holds.

    Each run keeps its figures in analyses/; a run that was analysed before with the same settings is not attacked
    again. Statements are made on several seeds of an objective: `aalp compare` trains them.

    Args:
        runs: run directories, or comparisons that `aalp compare` made (then all their trained runs).
        images: how many test images, drawn by a fixed seed.
        weights: of each run, the weights to analyze.
        out: folder of observations.json; by default the folder that the runs have in common.
        quiet: show no progress.
        trust_model_code: run the code that a run's config.yaml names as package.module:factory.
    """
    if images < 1:
        raise OptionError(f"images is {images}: it has to be at least 1")
    display = Display(quiet)
    configs = {path: run_config(path, trust_model_code) for path in _expand(runs, weights, display)}
    folder = out or _common_folder(list(configs))
    sources: dict[str, Source] = {}
    records = {path: analysis_of(path, config, weights, images, sources, display) for path, config in configs.items()}
    for run in configs:
        if left_at := _unfinished(run):
            display.warn(f"the training of '{run}' has not come to its end: {left_at}")
    measured = _measured(records, configs)
    observations = observe(measured)
    content = {
        "runs": [
            {"name": one.name, "path": one.path, "objective": one.objective, "seed": one.seed, "group": one.group}
            for one in measured
        ],
        "images": max(record["images"] for record in records.values()),
        "observations": observations,
        "summary": summary(observations),
        "left_out": left_out(measured),
        "groups": group_figures(measured),
    }
    analyses = [str(Path(record["path"]).parent) for record in records.values()]
    print_out(f"{report(content)}\n\nanalyses: {', '.join(analyses)}", {**content, "analyses": analyses})
    path = str(_write_observations(folder, content, measured))
    print_out(f"observations: {path}", {"path": path})


def _expand(paths: Sequence[Path], weights: str, display: Display) -> list[Path]:
    """Run directories, each once, with the weights that are asked for; comparisons are replaced by their trained runs.

    Raises:
        RunError: a path is neither, or has no weights yet.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if "objective" in read_yaml(RunDirectory.open(path).config):
            weights_file(path, weights)
            found.setdefault(path.resolve(), path)
            continue
        cells = [file.parent for file in path.glob("*/config.yaml")]
        # Weights of a training under way are no seed of its objective.
        ready = [cell for cell in cells if RunDirectory(cell).weights(weights).is_file() and not _unfinished(cell)]
        if not ready:
            raise RunError(
                f"'{path}' has no trained run with {weights} weights yet: let `aalp compare --run {quoted(path)}` finish one"
            )
        if len(ready) < len(cells):
            names = ", ".join(sorted(cell.name for cell in cells if cell not in ready))
            display.warn(f"{path}: left out, not trained to the end or without {weights} weights: {names}")
        for cell in sorted(ready, key=_rank):
            found.setdefault(cell.resolve(), cell)
    return list(found.values())


def _unfinished(path: Path) -> str | None:
    """How far a run's training has come where its log says that it is not at its end: `1 of 2 epochs`."""
    run = RunDirectory(path)
    if not run.metrics.is_file():
        return None
    done = len(run.metrics.read_text(encoding="utf-8", errors="replace").splitlines()) - 1
    return how_far(max(done, 0), read_yaml(run.config))


def _rank(cell: Path) -> tuple[int, str, int]:
    """Runs of a comparison in the order in which objectives are told of everywhere."""
    config = read_yaml(cell / "config.yaml")
    names = list(OBJECTIVES)
    objective = str(config.get("objective"))
    return names.index(objective) if objective in names else len(names), without_seed(cell.name), int(config.get("seed", 0))


def _common_folder(paths: Sequence[Path]) -> Path:
    try:
        common = Path(os.path.commonpath([path.resolve() for path in paths]))
    except ValueError as error:  # on different drives
        raise OptionError("the runs have no folder in common: name one with --out") from error
    here = Path.cwd()
    return common.relative_to(here) if common.is_relative_to(here) else common


OUTSIDE_OF_COMPARISON = frozenset({"objective", "method", "seed", "evaluation", "data", "threat"})
"""Options that objectives are free to differ in, or that the setting of a measurement covers."""

READING = frozenset({"root", "streaming", "memory_limit", "workers", "cache"})
"""Options of the data that say where it is and how it is read, not what is trained on."""


def _measured(records: Mapping[Path, Mapping[str, Any]], configs: Mapping[Path, Mapping[str, Any]]) -> list[Measured]:
    paths = list(configs)
    groups = {paths[at]: name for name, group in grouped(list(configs.items())) for at in group}
    names = [path.resolve().name for path in records]  # of `.` and of a link, too, by which a report finds them
    return [
        Measured(
            name=name if names.count(name) == 1 else str(path),
            path=str(path),
            objective=str(configs[path]["objective"]),
            group=groups[path],
            seed=int(configs[path].get("seed", 0)),
            setting=repr((record["data"]["digest"], record["images"], record["threat"], record["attack"])),
            options=_compared_options(configs[path]),
            figures=figures_of(record),
            steps=steps_of(record),
        )
        for name, (path, record) in zip(names, records.items(), strict=True)
    ]


def _compared_options(config: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in config.items() if key not in OUTSIDE_OF_COMPARISON}
    # The setting covers the images; how many of the training split are held out, it does not.
    data = {key: value for key, value in options.get("data_options", {}).items() if key not in READING}
    return options | {"data_options": data}


COLUMNS = {
    "clean": "clean",
    "robust": ATTACK,
    "n90": "n90",
    "n90_adversarial": f"n90 {ATTACK}",
    "effective_number": "effective",
    "gini": "gini",
    "k95_clean": "k95 clean",
    "k95_robust": f"k95 {ATTACK}",
    "conflict": "conflict z'",
    "conflict_clean": "conflict z",
    "conflict_weights": "conflict w",
    "misclassified_share": "wrong's share",
}


def report(content: Mapping[str, Any]) -> str:
    """The figures of all groups side by side, and the sentences."""
    rows = []
    for name, figures in content["groups"].items():
        seeds = len(figures["clean"]["values"])
        cells = []
        for figure in COLUMNS:
            cells.append(show_spread(figure, figures[figure]["mean"], figures[figure]["deviation"]))
        rows.append([name, str(seeds), *cells])
    parts = [
        f"{counted(content['images'], 'test image')} a run. Features: n90 carry 90 % of the positive contributions to the "
        "predicted class, k95 keep 95 % of the accuracy.\nConflict of the two losses: at the adversarial logits z', at the "
        "clean logits z, in the weights w. Wrong's share: of the pairing loss.",
        text_table(["objective", "seeds", *COLUMNS.values()], rows),
    ]
    for number in (1, 2):
        sentences = [found["sentence"] for found in content["observations"] if found["number"] == number]
        totals = [line for line in content["summary"] if line.startswith(f"Observation {number}:")]
        parts.append("\n".join([*totals, *(f"  {sentence}" for sentence in sentences)]))
    parts.append("\n".join(content["left_out"]))
    return "\n\n".join(part for part in parts if part)


def _write_observations(folder: Path, content: Mapping[str, Any], runs: Sequence[Measured]) -> Path:
    """Write observations.json with its tables, under a free name where another set of runs has left its own."""
    with alone_in(folder):  # an analysis that ends at the same time would write under the same name
        return _written(folder, content, runs)


def _written(folder: Path, content: Mapping[str, Any], runs: Sequence[Measured]) -> Path:
    path = folder / "observations.json"
    for known in [path, *sorted(folder.glob("observations-*.json"))]:
        if known.is_file():
            record = read_record(known, "observations")
            if all(record.get(name) == value for name, value in content.items()):
                return known
    if path.exists():
        path = free_path(folder, "observations", ".json")
    tables = {
        "": columns_of(
            [{key: found[key] for key in ("number", "claim", "holds", "sentence")} for found in content["observations"]]
        ),
        "-runs": columns_of(
            [{"name": r.name, "group": r.group, "objective": r.objective, "seed": r.seed, **r.figures} for r in runs]
        ),
    }
    for suffix, columns in tables.items():
        write_table(path.with_name(f"{path.stem}{suffix}.parquet"), columns)
        write_csv(path.with_name(f"{path.stem}{suffix}.csv"), columns)
    write_record(path, "observations", {"command": command_line(), **content})
    return path
