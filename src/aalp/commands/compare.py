"""`aalp compare`: train and evaluate several objectives with several seeds, and put the figures side by side."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aalp.commands.audit import audit_once, cheap_verdict
from aalp.commands.comparison import markdown, summary, text
from aalp.commands.config import (
    EvaluationOptions,
    MethodOptions,
    ThreatOptions,
    override,
    same_options,
    split_names,
)
from aalp.commands.console import Display, command_line, print_out
from aalp.commands.dry_run import show
from aalp.commands.train import (
    build_classifier,
    check,
    describe,
    evaluate_run,
    resume_command,
    run_cost,
    train_run,
    write_config,
)
from aalp.data.sources import DataOptions, Source, load_source
from aalp.errors import InterruptedRunError, OptionError, unknown_name
from aalp.method.pgd import AttackOptions
from aalp.models.catalog import ModelOptions
from aalp.store.files import write_atomically
from aalp.store.records import read_record, write_record
from aalp.store.run import RunDirectory
from aalp.training.loop import steps_per_epoch
from aalp.training.options import CheckpointOptions, TrainingOptions

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
        threat: what the adversary may do.
        attack: the attack used in training.
        method: numbers of the objectives; each takes those that it has.
        training: how to train.
        checkpoint: when states are saved.
        data_options: how the data is read.
        model_options: how the model is built.
        evaluation: what is measured.
    """
    numbers = _seeds(seeds)
    shared: dict[str, Any] = {
        "data": data,
        "model": model,
        "threat": threat,
        "attack": attack,
        "method": method,
        "training": training,
        "checkpoint": checkpoint,
        "data_options": data_options,
        "model_options": model_options,
        "evaluation": evaluation,
    }
    rows = _rows(split_names(objectives), variants or {}, shared)
    display = Display(quiet)
    source = load_source(data, data_options)
    # Whatever can fail on bad input does so before anything is written.
    costs = []
    for name, options in rows.items():
        classifier = build_classifier({**options, "seed": numbers[0]}, source)
        steps_per_epoch(source.train, options["training"].batch_size)
        left = [seed for seed in numbers if not _evaluated(run / f"{name}-seed{seed}", evaluation.split)]
        if dry_run and left:
            display.say(f"probing {name}")
            first = {**options, "seed": numbers[0]}
            costs.append(_times(run_cost(first, source, classifier, display, strict=False), len(left)))
    if dry_run:
        show({"run": run, **_asked(objectives, variants, numbers), **shared}, _sum(costs))
        return
    _open(run, shared)
    cells = [
        _cell(run / f"{name}-seed{seed}", name, {**options, "seed": seed}, source, display)
        for seed in numbers
        for name, options in rows.items()
    ]
    if audit:
        for cell in cells:
            cell["audit"] = _audited(run, cell, rows[cell["objective"]], source, display)
    content = summary(cells, list(rows))
    record = write_record(
        run / "comparison.json", "comparison", {"command": command_line(), "split": evaluation.split, **content}
    )
    write_atomically(run / "comparison.md", markdown(record).encode())
    files = {"path": str(run / "comparison.json"), "markdown": str(run / "comparison.md")}
    print_out(f"{text(record)}\n\nrecords: {', '.join(files.values())}", {**record, **files})


def _evaluated(path: Path, split: str) -> bool:
    return (RunDirectory(path).evaluations / f"{split}.json").is_file()


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


AGAIN = "choose another --run, or give the same options as then"

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


def _cell(path: Path, name: str, options: dict[str, Any], source: Source, display: Display) -> dict[str, Any]:
    """One row with one seed: what is done already is read, what is begun is continued."""
    directory = RunDirectory(path)
    record_path = directory.evaluations / f"{options['evaluation'].split}.json"
    begun = directory.begun
    if begun:
        RunDirectory.open(path)
        same_options(path, options, AGAIN)
    if not record_path.is_file():
        if not begun:
            path.mkdir(exist_ok=True)
            write_config(directory.config, options)
        display.say(describe(options, source, path))
        classifier = build_classifier(options, source)
        try:
            train_run(directory, options, source, classifier, display, resuming=begun, strict=False)
            evaluate_run(directory, options, source, display)
        except InterruptedRunError as error:
            alone = resume_command(path, options)
            again = f"aalp compare --run {path.parent}` and the same options as before, or one run with `{alone}"
            raise InterruptedRunError(error.signal_number, again) from error
    record = read_record(record_path, "evaluation")
    figures = {"clean": record["clean"]}
    figures |= {result["name"]: result["accuracy"] for result in record["attacks"]}
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


def _audited(run: Path, cell: Mapping[str, Any], options: Mapping[str, Any], source: Source, display: Display) -> str:
    """The verdict on a cell, with the `at` cell of its seed as the reference if there is one to compare with."""
    evaluation: EvaluationOptions = options["evaluation"]
    directory, reference = (RunDirectory(run / f"{name}-seed{cell['seed']}") for name in (cell["objective"], "at"))
    comparable = {"pgd-20", "autoattack"} <= set(split_names(evaluation.attacks)) and reference.evaluations.is_dir()
    return audit_once(directory, reference.path if comparable else None, options, source, display)


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


def _open(run: Path, shared: Mapping[str, Any]) -> None:
    """A new comparison directory, or one that was begun with the same options.

    Raises:
        RunError: it was begun with others, or is something else.
    """
    directory = RunDirectory(run)
    if not directory.begun:
        RunDirectory.create(run)
        write_config(directory.config, shared)
        return
    RunDirectory.open(run)
    same_options(run, shared, AGAIN)
