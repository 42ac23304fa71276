"""`aalp compare`: train and evaluate several objectives with several seeds, and put the figures side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aalp.commands.beginning import begin_or_go_on
from aalp.commands.building import build_classifier
from aalp.commands.cells import Cells, work_on_cells, write_comparison
from aalp.commands.comparison import text
from aalp.commands.config import (
    EvaluationOptions,
    MethodOptions,
    ThreatOptions,
    override,
    split_names,
)
from aalp.commands.console import Display, print_out
from aalp.commands.dry_run import show, times
from aalp.commands.one_run import check, check_evaluation, run_cost, run_options, warn_if_alone
from aalp.commands.side_by_side import side_by_side
from aalp.data.sources import DataOptions, check_columns, load_source
from aalp.distributed import ALONE, joined
from aalp.errors import DivergedError, InterruptedRunError, OptionError, unknown_name
from aalp.method.pgd import AttackOptions
from aalp.models.catalog import ModelOptions
from aalp.plain import Plain
from aalp.training.devices import Strategy
from aalp.training.options import CheckpointOptions, TrainingOptions
from aalp.training.plan import steps_per_epoch

EVERYTHING = "standard, at, trades, mart, alp, aalp, aalp-no-dropout, aalp-no-weights, aalp-no-schedule"


def compare(
    run: Path,
    objectives: str | list[str] = EVERYTHING,
    variants: dict[str, dict[str, Plain]] | None = None,
    seeds: str | int | list[int] = "0,1,2",
    data: str = "digits",
    model: str = "small-cnn",
    quiet: bool = False,
    dry_run: bool = False,
    audit: bool = False,
    jobs: int = 1,
    devices: int = 1,
    nodes: int = 1,
    strategy: Strategy = "ddp",
    threat: ThreatOptions = ThreatOptions(),
    attack: AttackOptions = AttackOptions(),
    method: MethodOptions = MethodOptions(),
    training: TrainingOptions = TrainingOptions(),
    checkpoint: CheckpointOptions = CheckpointOptions(),
    data_options: DataOptions = DataOptions(),
    model_options: ModelOptions = ModelOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
) -> None:
    """Train and evaluate objectives with several seeds; run again, it goes on.

    The same command in further terminals, or --jobs, works on the same comparison: a process for each GPU
    (CUDA_VISIBLE_DEVICES), or for each core or two.

    Args:
        run: directory of the comparison, new, or begun with the same options; each cell is a run directory in it.
        objectives: separated by commas; may be empty where there are variants.
        variants: further rows by name, each with the options in which it differs, as in a YAML file: \
`name: {objective: aalp, method: {pairing_weight: 1}}`.
        seeds: separated by commas.
        data: as for `aalp train`.
        model: as for `aalp train`.
        quiet: show no progress.
        dry_run: print the resolved options and what it would cost, from a probe of 10 steps; write nothing.
        audit: audit every run as well, against the `at` run of its seed, if there is one.
        jobs: processes that work on runs at the same time.
        devices: as for `aalp train`: processes that work together on one run after the other.
        nodes: as for `aalp train`.
        strategy: as for `aalp train`.
        threat: what the adversary may do.
        attack: the attack used in training.
        method: numbers of the objectives; each takes those that it has.
        training: how to train.
        checkpoint: when states are saved.
        data_options: how the data is read.
        model_options: how the model is built.
        evaluation: what is measured.
    """
    shared = run_options(locals())
    numbers = _seeds(seeds)
    rows = _rows(split_names(objectives), variants or {}, shared)
    ranks = ALONE if dry_run else joined(devices, nodes)
    if jobs < 1 or (jobs > 1 and ranks.size > 1):
        raise OptionError(f"jobs is {jobs} with {ranks.size} processes to a run: give --jobs of at least 1, or --devices")
    display = Display(quiet, ranks)
    if not dry_run:
        warn_if_alone(strategy, ranks, display)
    check_columns(data, data_options)
    with display.bar():
        source = ranks.first_of_machine(lambda: load_source(data, data_options, display.reading))
    # Whatever can fail on bad input does so before anything is written.
    for options in rows.values():
        check_evaluation(evaluation, options["threat"], source)
    cells, costs = Cells(run, rows, tuple(numbers)), []
    for name, options in rows.items():
        classifier = build_classifier({**options, "seed": numbers[0]}, source, display.warn)
        steps_per_epoch(source.train, options["training"].batch_size)
        if dry_run and (left := cells.left(name)):
            display.say(f"probing {name}")
            first = {**options, "seed": numbers[0]}
            costs.append(times(run_cost(first, source, classifier, display, strict=False), len(left)))
    if dry_run:
        show({"run": run, **_asked(objectives, variants, numbers), **shared}, _sum(costs))
        return
    ranks.from_main(lambda: begin_or_go_on(run, shared))
    work = partial(work_on_cells, cells, audit, ranks, strategy)
    try:
        side_by_side(jobs, work, source, partial(load_source, data, data_options), display)
    except (DivergedError, InterruptedRunError):
        if ranks.is_main and cells.evaluated():
            _tell(cells)
        raise
    if ranks.is_main:
        _tell(cells)


def _tell(cells: Cells) -> None:
    """Write and print the table of what is done."""
    record = write_comparison(cells)
    files = {"path": str(cells.run / "comparison.json"), "markdown": str(cells.run / "comparison.md")}
    print_out(f"{text(record)}\n\nrecords: {', '.join(files.values())}", {**record, **files})


def _asked(objectives: str | list[str], variants: Mapping[str, Any] | None, seeds: list[int]) -> dict[str, Any]:
    return {"objectives": ",".join(split_names(objectives)), "variants": dict(variants or {}), "seeds": seeds}


def _sum(costs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of several objectives: minutes and runs added up, and the slowest's steps."""
    total: dict[str, dict[str, Any]] = {}
    for part in ("training", "evaluation") if costs else ():
        slowest = max((cost[part] for cost in costs), key=lambda found: found["minutes"] / found["runs"])
        sums = {name: sum(cost[part][name] for cost in costs) for name in ("minutes", "runs")}
        total[part] = {**slowest, **sums}
    return total


VARIED = ("model", "threat", "attack", "method", "training", "model_options")
"""The options in which a variant may differ from the comparison; the data and the evaluation are the same for all."""


def _rows(names: Sequence[str], variants: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each row of the comparison, checked.

    Raises:
        OptionError: nothing to compare, a name twice or unfit for a folder, or an option that cannot work.
    """
    rows = {name: {**shared, "objective": name} for name in names}
    for options in rows.values():
        check(options, strict=False)
    for name, changes in variants.items():
        # YAML reads a bare 1 or yes as no text.
        if not isinstance(name, str) or name in rows or not re.fullmatch(r"[\w.+-]+", name):
            raise OptionError(f"variant '{name}' needs a name of its own, of letters, digits and . _ + -")
        if not isinstance(changes, Mapping) or "objective" not in changes:
            raise OptionError(f"variant '{name}' has no objective: write `{name}: {{objective: aalp, ...}}`")
        for key in changes:
            if key not in ("objective", *VARIED):
                raise OptionError(f"variant '{name}': {unknown_name('option', str(key), ['objective', *VARIED])}")
        overridden = override(
            {key: shared[key] for key in VARIED}, {k: v for k, v in changes.items() if k != "objective"}, name
        )
        rows[name] = {**shared, **overridden, "objective": str(changes["objective"])}
        check(rows[name], strict=False)
        # What the comparison gives to all is for those that have it; what a variant gives itself has to apply to it.
        own = override({"method": MethodOptions()}, {"method": changes.get("method", {})}, name)
        check({**rows[name], **own})
    if not rows:
        raise OptionError("objectives is empty: name at least one")
    return rows


def _seeds(seeds: str | int | list[int]) -> list[int]:
    try:
        numbers = [int(seed) for seed in split_names(seeds)]
    except ValueError:
        numbers = []
    if not numbers:
        raise OptionError(f"seeds is '{seeds}': give whole numbers separated by commas, such as 0,1,2")
    return list(dict.fromkeys(numbers))
