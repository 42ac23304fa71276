"""What the files of runs say, read into plain values; a part that is missing stays empty."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from aalp.errors import RunError
from aalp.report.style import Series, series
from aalp.report.telling import age, of_trained_data, outdated, same_subject, telling
from aalp.store.checkpoint import read_foreign_tensors, read_metadata
from aalp.store.records import read_csv, read_record
from aalp.store.run import RunDirectory

NEEDED = {
    "evaluation": ("images", "clean", "robust", "intervals", "attacks", "broken_by", "threat", "data", "model", "weights"),
    "audit": ("verdict", "gates", "images", "threat", "data", "weights"),
    "analysis": ("images", "attack", "threat", "classes", "data", "model", "weights"),
}
"""What a report cannot do without, by the kind of record."""


@dataclass(frozen=True)
class Run:
    """One trained classifier.

    Attributes:
        path: the run directory, as the user named it.
        config: the resolved options, and `config_text` as they stand in the file.
        metrics: columns of metrics.csv, None where a cell is empty.
        evaluations: records, the one to put first in front (see `telling`).
        audits: records, those of the same weights, data and threat as the first evaluation in front, then the newest.
        analysis: the analysis record chosen in the same way, of the most images before the newest.
        gallery: `clean` and `adversarial` (M, channels, height, width) in [0, 1].
        digest: SHA-256 of the data that it was trained on, where that had to be looked up.
    """

    path: Path
    config: Mapping[str, Any]
    config_text: str
    metrics: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    audits: Sequence[Mapping[str, Any]] = ()
    analysis: Mapping[str, Any] | None = None
    gallery: Mapping[str, Tensor] | None = None
    digest: str | None = None

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        return self.evaluations[0] if self.evaluations else None

    @property
    def audit(self) -> Mapping[str, Any] | None:
        """The audit that vouches for the first evaluation: one of another thing says nothing of it."""
        fitting = [audit for audit in self.audits if self.evaluation is None or same_subject(audit, self.evaluation)]
        return fitting[0] if fitting else None

    @property
    def unfinished(self) -> str | None:
        """See `how_far`."""
        return how_far(len(self.metrics.get("epoch", ())), self.config)

    @property
    def objective(self) -> str:
        return str(self.config.get("objective", self.path.name))

    @property
    def seed(self) -> Any:
        return self.config.get("seed", 0)

    @property
    def data(self) -> str:
        """The data that it was trained on, whatever it was evaluated on."""
        return str(self.config.get("data") or "unknown data")

    def of_trained_data(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of that data."""
        return of_trained_data(record, self.config, self.digest)


@dataclass(frozen=True)
class Group:
    """The runs that differ in their seed alone: one model of the report, with one look in all figures."""

    name: str
    runs: tuple[Run, ...]
    look: Series
    number: int

    def called(self, run: Run) -> str:
        """A name of one of its runs that tells it from the others."""
        return self.name if len(self.runs) == 1 else f"{self.name}, seed {run.seed}"


def runs_of(groups: Sequence[Group]) -> list[Run]:
    """Every run, group by group."""
    return [run for group in groups for run in group.runs]


def evaluations_of(groups: Sequence[Group]) -> list[Mapping[str, Any]]:
    """The evaluation that speaks for each run that has one."""
    return [run.evaluation for run in runs_of(groups) if run.evaluation]


def how_far(done: int, config: Mapping[str, Any]) -> str | None:
    """How far a training of so many epochs has come where that is not its end: `51 of 60 epochs`."""
    wanted = (config.get("training") or {}).get("epochs", 0)
    return f"{done} of {wanted} epochs" if done < wanted else None


def read_run(path: Path, config: Mapping[str, Any]) -> Run:
    """Everything that a run directory holds.

    Args:
        config: its config.yaml.

    Raises:
        RunError: a file in it is not what it should be; the message names it.
    """
    directory = RunDirectory(path)
    evaluations = [_evaluation(file) for file in sorted(directory.evaluations.glob("*.json"))]
    audits = [_record(file, "audit") for file in sorted(directory.audits.glob("*.json"))]
    analyses = [_record(file, "analysis") for file in directory.analysis_records]
    digest = _trained_digest(directory, config, evaluations)
    found = list(evaluations)  # a list that is being sorted is empty
    evaluations.sort(key=lambda record: (not outdated(record, found), telling(record, config, digest)), reverse=True)
    audits.sort(key=lambda record: (not evaluations or same_subject(record, evaluations[0]), age(record)), reverse=True)
    # An analysis has no verdict that a newer one would take back: of more images it is the better one.
    analyses.sort(
        key=lambda record: (not evaluations or same_subject(record, evaluations[0]), record["images"], age(record)),
        reverse=True,
    )
    analysis = analyses[0] if analyses else None
    return Run(
        path=path,
        config=config,
        config_text=directory.config.read_text(encoding="utf-8", errors="replace"),
        metrics=_metrics(directory.metrics),
        evaluations=evaluations,
        audits=audits,
        analysis=analysis,
        gallery=_gallery(analysis),
        digest=digest,
    )


def _trained_digest(directory: RunDirectory, config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str | None:
    """What the weights say of the data that they were trained on, asked only where a record names another data."""
    if all(of_trained_data(record, config, None) for record in records):
        return None
    for which in ("best", "last"):
        try:
            return (read_metadata(directory.weights(which)).get("data") or {}).get("digest")
        except RunError:  # no report hangs on weights: the name alone tells then
            continue
    return None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs, see `grouped`."""
    found = grouped([(run.path, run.config) for run in runs])
    return [
        Group(name, tuple(runs[at] for at in places), series(number), number) for number, (name, places) in enumerate(found)
    ]


def grouped(runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[tuple[str, list[int]]]:
    """Which runs, by path and configuration, differ in their seed alone: for each group a name and the places of its runs.

    A name is the shortest of objective, folder name and path that tells all groups apart.
    """
    by_options: dict[str, list[int]] = {}
    for place, (path, config) in enumerate(runs):
        options = repr(sorted((name, value) for name, value in config.items() if name not in ("seed", "evaluation")))
        same = by_options.setdefault(options, [])
        # The same seed again is another model: its weights differ in something that no option tells.
        again = any(runs[other][1].get("seed", 0) == config.get("seed", 0) for other in same)
        by_options.setdefault(f"{options}{path}", []).append(place) if again else same.append(place)
    firsts = [runs[group[0]] for group in by_options.values()]
    for names in (
        [str(config.get("objective", path.name)) for path, config in firsts],
        [without_seed(path.name) for path, _ in firsts],
        [str(path) for path, _ in firsts],
    ):
        if len(set(names)) == len(names) and all(names):
            break
    return list(zip(names, by_options.values(), strict=True))


def without_seed(name: str) -> str:
    """The name of the row of a comparison that a run's folder is of."""
    return re.sub(r"-seed\d+$", "", name)


def _record(path: Path, kind: str) -> dict[str, Any]:
    record = read_record(path, kind)
    missing = [name for name in NEEDED[kind] if name not in record]
    if missing:
        raise RunError(f"'{path}' has no {missing[0]}: it is not whole; make it anew")
    return {**record, "path": path}


def _evaluation(path: Path) -> dict[str, Any]:
    """An evaluation; where nothing was attacked, its robust accuracy is None: earlier versions wrote the clean one there."""
    record = _record(path, "evaluation")
    return record if record["attacks"] else {**record, "robust": None}


def _metrics(path: Path) -> dict[str, list[float | None]]:
    if not path.is_file():
        return {}
    try:
        rows = read_csv(path)
        columns = list(rows[0]) if rows else []
        return {name: [_number(row[name]) for row in rows] for name in columns}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise RunError(f"'{path}' is not a readable table of metrics: {error}; restore it or move it away") from error


def _number(cell: str) -> float | None:
    """A cell as JSON can hold it, which has no word for what is not finite."""
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None


def _gallery(analysis: Mapping[str, Any] | None) -> dict[str, Tensor] | None:
    """The images of an analysis."""
    about = (analysis or {}).get("gallery")
    if analysis is None or not about:
        return None
    path = Path(analysis["path"]).parent / Path(about["file"]).name
    tensors = read_foreign_tensors(path)
    shapes = {tuple(tensors[name].shape) for name in ("clean", "adversarial") if name in tensors}
    if not {"clean", "adversarial"} <= tensors.keys() or len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise RunError(f"'{path}' does not hold clean and adversarial images of one shape: run `aalp analyze` again")
    return tensors
