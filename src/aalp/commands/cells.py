"""The cells of a comparison: one row of options with one seed each, a run directory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aalp.commands.audit import audit_once, audit_verdict
from aalp.commands.beginning import begin_or_go_on, goes_on, resume_command
from aalp.commands.building import build_classifier
from aalp.commands.comparison import markdown, summary
from aalp.commands.config import EvaluationOptions, quoted, split_names, to_plain, with_own_numbers
from aalp.commands.console import Display, command_line
from aalp.commands.evaluation_record import cheap_verdict
from aalp.commands.one_run import describe, evaluate_run, train_run
from aalp.commands.opening import check_same_training
from aalp.commands.side_by_side import share_out, stop_if_left
from aalp.commands.yaml_file import read_yaml
from aalp.data.sources import Source
from aalp.distributed import Ranks
from aalp.errors import DivergedError, InterruptedRunError
from aalp.report.telling import no_better_than_one_answer
from aalp.store.files import write_atomically
from aalp.store.records import read_csv, read_record, write_record
from aalp.store.run import RunDirectory
from aalp.training.devices import Strategy
from aalp.training.trackers import tracking


@dataclass(frozen=True)
class Cells:
    """What a comparison consists of.

    Args:
        run: its directory.
        rows: the options of each row, by name.
        seeds: each row is trained with every one of them.
    """

    run: Path
    rows: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]

    def directory(self, name: str, seed: int) -> RunDirectory:
        """The run directory of a cell."""
        return RunDirectory(self.run / f"{name}-seed{seed}")

    def directories(self) -> dict[tuple[str, int], RunDirectory]:
        """Each cell's run directory, by row and seed, in the order in which they are worked on."""
        return {(name, seed): self.directory(name, seed) for seed in self.seeds for name in self.rows}

    def options(self, name: str, seed: int) -> dict[str, Any]:
        """What the run of a cell is made of, as `aalp train` takes it: it refuses numbers that an objective does not have."""
        return with_own_numbers({**self.rows[name], "seed": seed})

    def left(self, name: str) -> list[int]:
        """The seeds with which a row is not evaluated yet."""
        return [seed for seed in self.seeds if not self.is_evaluated(name, seed)]

    def is_evaluated(self, name: str, seed: int) -> bool:
        """Whether all is measured of a cell that the table needs."""
        return _evaluation(self.directory(name, seed), self.rows[name]).is_file()

    def evaluated(self) -> list[tuple[str, int]]:
        """The cells that are evaluated, in the order in which they are worked on."""
        return [cell for cell in self.directories() if self.is_evaluated(*cell)]


def work_on_cells(cells: Cells, audit: bool, ranks: Ranks, strategy: Strategy, source: Source, display: Display) -> None:
    """Train and evaluate all cells together with any other process that is at it, and audit them once all are evaluated."""
    directories = cells.directories()
    # All of those that are there before any is worked on: one that does not fit is better told now than after hours.
    found = {cell for cell in directories if ranks.from_main(partial(goes_on, directories[cell].path, cells.options(*cell)))}
    for cell in filter(found.__contains__, directories):
        ranks.from_main(partial(check_same_training, directories[cell], source))

    def begin(cell: tuple[str, int]) -> None:
        if cell not in found:
            ranks.from_main(partial(begin_or_go_on, directories[cell].path, cells.options(*cell)))
            found.add(cell)

    def train_and_evaluate(cell: tuple[str, int]) -> None:
        if not ranks.from_main(partial(cells.is_evaluated, *cell)):
            _work_on_cell(directories[cell], cells.options(*cell), source, display, ranks, strategy)
            if ranks.is_main:
                write_comparison(cells)

    def audited(cell: tuple[str, int]) -> None:
        _audited(directories[cell], cells.directory("at", cell[1]), cells.options(*cell), source, display, ranks)

    diverged: DivergedError | None = None
    try:
        share_out(directories, begin, train_and_evaluate, display, ranks)
    except DivergedError as error:  # of one run, once the others are done: they are audited all the same
        diverged = error
    if audit:
        share_out({cell: directories[cell] for cell in ranks.from_main(cells.evaluated)}, begin, audited, display, ranks)
    if diverged is not None:
        raise diverged


def _work_on_cell(
    directory: RunDirectory, options: dict[str, Any], source: Source, display: Display, ranks: Ranks, strategy: Strategy
) -> None:
    """Train and evaluate one row with one seed: what is begun is continued."""
    display.say(describe(options, source, directory.path))
    classifier = build_classifier(options, source, begun=bool(directory.states()))
    try:
        with tracking(directory, None, to_plain(options), ranks) as loggers:
            train_run(
                *(directory, options, source, classifier, display),
                resuming=True,
                strict=False,
                ranks=ranks,
                loggers=loggers,
                on_epoch=lambda row: stop_if_left(),
                strategy=strategy,
            )
        evaluate_run(directory, options, source, display, ranks)
    except InterruptedRunError as error:
        alone = resume_command(directory.path, options)
        again = f"aalp compare --run {quoted(directory.path.parent)}` and the same options as before, or one run with `{alone}"
        raise InterruptedRunError(error.signal_number, again) from error


def _evaluation(directory: RunDirectory, options: Mapping[str, Any]) -> Path:
    return directory.evaluations / f"{options['evaluation'].split}.json"


def write_comparison(cells: Cells) -> dict[str, Any]:
    """Write the table of all cells that are evaluated as comparison.json and comparison.md; at least one has to be.

    Written anew whenever a cell is done, so that a comparison that takes days can be read before its end.
    """
    done = cells.evaluated()
    found = [outcome(cells, name, seed) for name, seed in done]
    left = [directory.path.name for cell, directory in cells.directories().items() if cell not in done]
    split = next(iter(cells.rows.values()))["evaluation"].split
    content = {"command": command_line(), "split": split, "left": left, **summary(found, list(cells.rows))}
    record = write_record(cells.run / "comparison.json", "comparison", content)
    write_atomically(cells.run / "comparison.md", markdown(record).encode())
    return record


def outcome(cells: Cells, name: str, seed: int) -> dict[str, Any]:
    """What a row with one seed came out as; its audit, if there is one, else what the evaluation's cheap gates say."""
    directory, options = cells.directory(name, seed), cells.rows[name]
    record = read_record(_evaluation(directory, options), "evaluation")
    figures = {"clean": record["clean"]}
    figures |= {result["name"]: result["accuracy"] for result in record["attacks"]}
    if record["attacks"]:  # else there is none
        figures["robust"] = record["robust"]
    figures |= {name: value for name, value in record["measures"].items() if name in ("n90", "n90_adversarial")}
    conflict = _last_metric(directory, "conflict_rate")
    if conflict is not None:
        figures["conflict_rate"] = conflict
    figures["train_seconds"] = _last_metric(directory, "seconds") or 0.0
    return {
        "objective": name,
        "seed": seed,
        "images": record["images"],
        "threat": record["threat"],
        "one_answer": no_better_than_one_answer(record),
        "best_epoch": record["model"]["epoch"],
        "figures": figures,
        "attack_seconds": {result["name"]: result["seconds"] for result in record["attacks"]},
        "audit": audit_verdict(directory) or cheap_verdict(record),
        "environment": record["environment"],
    }


def _audited(
    directory: RunDirectory, at: RunDirectory, options: Mapping[str, Any], source: Source, display: Display, ranks: Ranks
) -> None:
    """Audit a cell, with the `at` cell of its seed, if there is one of the same threat, as the reference."""
    evaluation: EvaluationOptions = options["evaluation"]
    # An audit is of test images: what was evaluated on others has no gap that it could take.
    comparable = {"pgd-20", "autoattack"} <= set(split_names(evaluation.attacks)) and at.evaluations.is_dir()
    comparable = comparable and evaluation.split == "test" and read_yaml(at.config).get("threat") == to_plain(options)["threat"]
    audit_once(directory, at.path if comparable else None, options, source, display, ranks)


def _last_metric(directory: RunDirectory, column: str) -> float | None:
    value = read_csv(directory.metrics)[-1].get(column)
    return float(value) if value else None
