"""`aalp compare`: train and evaluate several objectives with several seeds, and put the figures side by side."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aalp.commands.audit import audit_once, audit_verdict
from aalp.commands.comparison import markdown, summary, text
from aalp.commands.config import (
    EvaluationOptions,
    MethodOptions,
    ThreatOptions,
    override,
    quoted,
    same_options,
    split_names,
    to_plain,
)
from aalp.commands.console import Display, command_line, print_out
from aalp.commands.dry_run import show
from aalp.commands.evaluation_record import cheap_verdict
from aalp.commands.one_run import (
    AGAIN,
    begin_or_go_on,
    build_classifier,
    check,
    describe,
    evaluate_run,
    resume_command,
    run_cost,
    run_options,
    train_run,
    warn_if_alone,
    write_config,
)
from aalp.data.sources import DataOptions, Source, load_source
from aalp.distributed import ALONE, Ranks, joined
from aalp.errors import InterruptedRunError, OptionError, unknown_name
from aalp.method.pgd import AttackOptions
from aalp.models.catalog import ModelOptions
from aalp.store.files import write_atomically
from aalp.store.records import read_record, write_record
from aalp.store.run import RunDirectory
from aalp.training.devices import Strategy
from aalp.training.loop import steps_per_epoch
from aalp.training.options import CheckpointOptions, TrainingOptions
from aalp.training.trackers import tracking

EVERYTHING = "standard,at,trades,mart,alp,aalp,aalp-no-dropout,aalp-no-weights"


def compare(
    run: Path,
    objectives: str | list[str] = EVERYTHING,
    variants: dict[str, dict[str, Any]] | None = None,
    seeds: str | int | list[int] = "0,1,2",
    data: str = "digits",
    model: str = "small-cnn",
    quiet: bool = False,
    dry_run: bool = False,
    audit: bool = False,
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
    """Train and evaluate a list of objectives with several seeds; run again, it continues where it stopped.

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
        audit: audit every run as well, with the `at` run of its seed as the reference where there is one.
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
    display = Display(quiet, ranks)
    if not dry_run:
        warn_if_alone(strategy, ranks, display)
    source = ranks.first_of_machine(lambda: load_source(data, data_options))
    # Whatever can fail on bad input does so before anything is written.
    costs = []
    for name, options in rows.items():
        classifier = build_classifier({**options, "seed": numbers[0]}, source, display.warn)
        steps_per_epoch(source.train, options["training"].batch_size)
        left = [seed for seed in numbers if not _evaluation(RunDirectory(run / f"{name}-seed{seed}"), options).is_file()]
        if dry_run and left:
            display.say(f"probing {name}")
            first = {**options, "seed": numbers[0]}
            costs.append(_times(run_cost(first, source, classifier, display, strict=False), len(left)))
    if dry_run:
        show({"run": run, **_asked(objectives, variants, numbers), **shared}, _sum(costs))
        return
    ranks.from_main(lambda: begin_or_go_on(run, shared))
    paths = {(name, seed): run / f"{name}-seed{seed}" for seed in numbers for name in rows}
    for (name, seed), path in paths.items():
        _work_on_cell(path, {**rows[name], "seed": seed}, source, display, ranks, strategy)
    if audit:
        for name, seed in paths:
            _audited(run, name, seed, rows[name], source, display, ranks)
    if ranks.is_main:
        cells = [_cell(path, name, {**rows[name], "seed": seed}) for (name, seed), path in paths.items()]
        for cell in cells if audit else ():
            cell["audit"] = audit_verdict(RunDirectory(paths[cell["objective"], cell["seed"]]))
        content = summary(cells, list(rows))
        record = write_record(
            run / "comparison.json", "comparison", {"command": command_line(), "split": evaluation.split, **content}
        )
        write_atomically(run / "comparison.md", markdown(record).encode())
        files = {"path": str(run / "comparison.json"), "markdown": str(run / "comparison.md")}
        print_out(f"{text(record)}\n\nrecords: {', '.join(files.values())}", {**record, **files})


def _asked(objectives: str | list[str], variants: Mapping[str, Any] | None, seeds: list[int]) -> dict[str, Any]:
    return {"objectives": ",".join(split_names(objectives)), "variants": dict(variants or {}), "seeds": seeds}


def _times(cost: Mapping[str, Mapping[str, Any]], runs: int) -> dict[str, dict[str, Any]]:
    """The cost of so many runs like this one, which only their number and the minutes depend on."""
    return {part: {**found, "minutes": found["minutes"] * runs, "runs": runs} for part, found in cost.items()}


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
        if name in rows or not re.fullmatch(r"[\w.+-]+", name):
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
        check(rows[name], strict="method" in changes)
    if not rows:
        raise OptionError("objectives is empty: name at least one")
    return rows


def _work_on_cell(
    path: Path, options: dict[str, Any], source: Source, display: Display, ranks: Ranks, strategy: Strategy
) -> None:
    """Train and evaluate one row with one seed: what is done already stays, what is begun is continued."""
    directory = RunDirectory(path)

    def look() -> tuple[bool, bool]:
        begun = directory.begun
        if begun:
            RunDirectory.open(path)
            same_options(path, options, AGAIN)
        else:
            path.mkdir(exist_ok=True)
            write_config(directory.config, options)
        return begun, _evaluation(directory, options).is_file()

    begun, done = ranks.from_main(look)
    if done:
        return
    display.say(describe(options, source, path))
    classifier = build_classifier(options, source, begun=begun)
    try:
        with tracking(directory, None, to_plain(options), ranks) as loggers:
            train_run(
                *(directory, options, source, classifier, display, begun),
                strict=False,
                ranks=ranks,
                loggers=loggers,
                strategy=strategy,
            )
        evaluate_run(directory, options, source, display, ranks)
    except InterruptedRunError as error:
        alone = resume_command(path, options)
        again = f"aalp compare --run {quoted(path.parent)}` and the same options as before, or one run with `{alone}"
        raise InterruptedRunError(error.signal_number, again) from error


def _evaluation(directory: RunDirectory, options: Mapping[str, Any]) -> Path:
    return directory.evaluations / f"{options['evaluation'].split}.json"


def _cell(path: Path, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a row with one seed came out as."""
    directory = RunDirectory(path)
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
        "seed": options["seed"],
        "images": record["images"],
        "best_epoch": record["model"]["epoch"],
        "figures": figures,
        "attack_seconds": {result["name"]: result["seconds"] for result in record["attacks"]},
        "audit": cheap_verdict(record),
        "environment": record["environment"],
    }


def _audited(
    run: Path, name: str, seed: int, options: Mapping[str, Any], source: Source, display: Display, ranks: Ranks
) -> None:
    """Audit a cell, with the `at` cell of its seed as the reference if there is one to compare with."""
    evaluation: EvaluationOptions = options["evaluation"]
    directory, reference = (RunDirectory(run / f"{cell}-seed{seed}") for cell in (name, "at"))
    comparable = {"pgd-20", "autoattack"} <= set(split_names(evaluation.attacks)) and reference.evaluations.is_dir()
    audit_once(directory, reference.path if comparable else None, options, source, display, ranks)


def _last_metric(directory: RunDirectory, column: str) -> float | None:
    with directory.metrics.open(newline="") as file:
        value = list(csv.DictReader(file))[-1].get(column)
    return float(value) if value else None


def _seeds(seeds: str | int | list[int]) -> list[int]:
    try:
        numbers = [int(seed) for seed in split_names(seeds)]
    except ValueError:
        numbers = []
    if not numbers:
        raise OptionError(f"seeds is '{seeds}': give whole numbers separated by commas, such as 0,1,2")
    return list(dict.fromkeys(numbers))
