"""`aalp search`: hyper-parameter search over any option, pruned, parallel, resumable; judged on validation images alone."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aalp.commands.beginning import begin, begin_or_go_on, write_config
from aalp.commands.building import build_classifier
from aalp.commands.config import EvaluationOptions, MethodOptions, ThreatOptions, quoted, with_own_numbers
from aalp.commands.console import Display, command_line, print_out
from aalp.commands.dry_run import show, times
from aalp.commands.one_run import check, run_cost, run_options, train_run
from aalp.commands.opening import check_same_training
from aalp.commands.search_space import applied, parse_space
from aalp.commands.side_by_side import alone_at, side_by_side, stop_if_left
from aalp.commands.study import PrunedError, Study, Trial, check_search
from aalp.commands.tables import text_table
from aalp.data.sources import DataOptions, Source, check_columns, load_source
from aalp.errors import AalpError, DataError, InterruptedRunError, OptionError, RunError
from aalp.method.pgd import AttackOptions
from aalp.models.catalog import ModelOptions
from aalp.plain import Plain
from aalp.report.figures import counted
from aalp.shown import in_percent
from aalp.store.records import read_csv, write_record
from aalp.store.run import RunDirectory
from aalp.training.options import CheckpointOptions, TrainingOptions
from aalp.training.plan import steps_per_epoch


def search(
    run: Path,
    space: dict[str, Plain] | None = None,
    trials: int = 20,
    jobs: int = 1,
    prune: bool = True,
    data: str = "digits",
    model: str = "small-cnn",
    objective: str = "aalp",
    seed: int = 0,
    quiet: bool = False,
    dry_run: bool = False,
    threat: ThreatOptions = ThreatOptions(),
    attack: AttackOptions = AttackOptions(),
    method: MethodOptions = MethodOptions(),
    training: TrainingOptions = TrainingOptions(),
    checkpoint: CheckpointOptions = CheckpointOptions(),
    data_options: DataOptions = DataOptions(),
    model_options: ModelOptions = ModelOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
) -> None:
    """Search options for the highest robust accuracy on validation images; run again, it continues where it stopped.

    Test images are never looked at. Each trial is a run directory, RUN/trials/NNNN. The same command in further
    terminals, or --jobs, works on the same trials.

    Args:
        run: directory of the search, new, or begun with the same options.
        space: options and their values, as YAML: '{training.lr: [0.05, 0.4, log], attack.steps: [5, 10], \
method.weights.rule: {choices: [uniform, confidence]}}'.
        trials: how many in all; more than before goes on with a finished search.
        jobs: processes that work on trials at the same time.
        prune: stop a trial whose validation robust accuracy falls below the median of the others at its epoch; none is \
stopped where the space has training.epochs.
        data: as for `aalp train`.
        model: as for `aalp train`.
        objective: as for `aalp train`.
        seed: of every trial's training, and of the search.
        quiet: show no progress.
        dry_run: print the resolved options and what the trials that are left would cost if none is pruned, from a probe of 10 \
steps with the options as they stand, not as the space varies them; write nothing.
        threat: what the adversary may do.
        attack: the attack used in training.
        method: numbers of the objective.
        training: how to train.
        checkpoint: when states are saved.
        data_options: how the data is read.
        model_options: how the model is built.
        evaluation: kept for the winner; a search does not evaluate.
    """
    options = run_options(locals())
    check_search()
    if trials < 1 or jobs < 1:
        raise OptionError(f"trials is {trials} and jobs is {jobs}: both have to be at least 1")
    dimensions = parse_space(space or {})
    _check_space(options, space or {})
    check_columns(data, data_options)
    display = Display(quiet)
    with display.bar():
        source = load_source(data, data_options, display.reading)
    if len(source.validation) == 0:
        raise DataError(f"'{data}' has no validation images to judge trials by: hold some out with --data_options.validation")
    classifier = build_classifier(options, source)
    steps_per_epoch(source.train, training.batch_size)
    # The first quarter of a one-cycle schedule, where the learning rate still rises, tells little of its end.
    # At the same epoch trials of other lengths are elsewhere in their schedule: longer ones would all seem worse.
    study = Study(run, dimensions, seed, prune and "training.epochs" not in dimensions, warmup=training.epochs // 4 + 1)
    if dry_run:
        cost = run_cost(options, source, classifier, display, strict=False, evaluate=False)
        show({"run": run, "space": space, "trials": trials, "prune": prune, **options}, times(cost, study.left(trials)))
        return
    begin_or_go_on(run, {**options, "space": space, "prune": prune})
    # A trial whose process died before it had written its options is begun anew.
    for trial in map(RunDirectory, sorted((run / "trials").glob("*"))):
        if trial.begun:
            check_same_training(trial, source)
    work = partial(_trials, study, dict(options), trials)
    side_by_side(jobs, work, source, partial(load_source, data, data_options), display)
    print_out(*_finish(study, options, len(source.validation)))


def _check_space(options: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    """Refuse a space of which a value cannot work, before anything is read or written.

    Raises:
        OptionError: one cannot.
    """
    # Options that only some of the objectives have are searched together with the objective.
    strict = "objective" not in space
    for name, dimension in parse_space(space).items():
        for value in dimension.ends():
            check(applied(options, {name: value}), strict=strict)


def _trials(study: Study, options: Mapping[str, Any], count: int, source: Source, display: Display) -> None:
    """Trials until there are enough."""
    while True:
        with study.next_trial(count) as trial:
            if trial is None:
                return
            _one(study, trial, options, source, display)


def _one(study: Study, trial: Trial, options: Mapping[str, Any], source: Source, display: Display) -> None:
    """Train one trial to its end, from the start or from where a process that is gone left it."""
    directory = RunDirectory(_folder(study, trial.number))
    told = ", ".join(f"{name} {_number(value)}" for name, value in trial.values.items())
    display.say(f"trial {trial.number}{' goes on' if directory.begun else ''}: {told}")
    same = (row for row in study.rows() if row["options"] == trial.values and row["state"] in ("complete", "pruned"))
    if twin := next(same, None):  # a training is a function of its options
        study.tell_as(trial, twin)
        display.say(f"trial {trial.number} is trial {twin['number']} again: {twin['state']}, not trained anew")
        return

    def on_epoch(row: Mapping[str, Any]) -> None:
        trial.report(row["validation_robust"], row["epoch"])
        stop_if_left()

    try:
        chosen = applied(options, trial.values)
        check(chosen, strict=False)
        chosen = with_own_numbers(chosen)  # `aalp train` takes no others
        classifier = build_classifier(chosen, source)
        begun = directory.begun
        if not begun:
            begin(directory.path, chosen)
        for epoch, robust in _epochs_done(directory):  # of which the process that is gone may not have told
            trial.report(robust, epoch)
        with alone_at(directory):
            progress = train_run(directory, chosen, source, classifier, display, begun, strict=False, on_epoch=on_epoch)
    except InterruptedRunError as error:
        raise InterruptedRunError(error.signal_number, command_line()) from error
    except PrunedError:
        study.tell(trial, None, "pruned")
        display.say(f"trial {trial.number} pruned")
    except RunError:  # a disk that refuses is no fault of the options
        raise
    except AalpError as error:
        study.tell(trial, None, "fail", " ".join(str(error).split()))
        display.warn(f"trial {trial.number} failed: {error}")
    else:
        study.tell(trial, progress.best_robust, "complete")
        display.say(f"trial {trial.number}: validation robust accuracy {in_percent(progress.best_robust)}%")


def _epochs_done(directory: RunDirectory) -> list[tuple[int, float]]:
    """Epochs that a run has behind it, and its robust accuracy on the validation images after each."""
    if not directory.metrics.is_file():
        return []
    try:
        return [(int(row["epoch"]), float(row["validation_robust"])) for row in read_csv(directory.metrics)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(f"'{directory.metrics}' is not a readable table: {error}; remove that trial's folder") from error


def _folder(study: Study, number: int) -> Path:
    return study.folder / "trials" / f"{number:04d}"


def _finish(study: Study, options: Mapping[str, Any], images: int) -> tuple[str, dict[str, Any]]:
    """Write the record, and the winner's configuration; both as a text for the screen, and as what --json prints."""
    rows = study.rows()
    done = [row for row in rows if row["state"] == "complete"]
    best = max(done, key=lambda row: (row["value"], -row["number"]), default=None)
    content: dict[str, Any] = {
        "command": command_line(),
        "objective": f"validation robust accuracy (PGD-{options['training'].validation_steps}) of the best epoch",
        "validation_images": images,
        "trials": rows,
        "best": best,
    }
    lines = [table(rows)]
    if best is not None:
        # As --config takes it, whatever the search does later.
        file = study.folder / f"best-{best['number']:04d}.yaml"
        write_config(file, with_own_numbers(applied(options, best["options"])))
        content["config"] = str(file)
        lines.append(
            f"best: trial {best['number']}, validation robust accuracy {in_percent(best['value'])}%. The highest of "
            f"{len(done)} is a flattering figure: what counts is an evaluation on test images. To train it:\n\n"
            f"    aalp train --config {quoted(file)} --run {quoted(study.folder / 'best')} --evaluate\n\n"
            f"or take the trial itself: {_folder(study, best['number'])}"
        )
    waiting = sum(row["state"] == "running" for row in rows)
    if waiting:
        lines.append(f"still under way in other processes: {counted(waiting, 'trial')}; the same command tells the outcome")
    elif best is None:
        lines.append("no trial came to its end: see the reasons, and widen or move the space")
    path = study.folder / "search.json"
    record = write_record(path, "search", content)
    return "\n\n".join([*lines, f"record: {path}"]), {**record, "path": str(path)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Trials from best to worst, then those that did not come to their end."""
    names = list(dict.fromkeys(name for row in rows for name in row["options"]))
    ordered = sorted(rows, key=lambda row: (row["value"] is None, -(row["value"] or 0.0), row["number"]))
    cells = [
        [
            str(row["number"]),
            "-" if row["value"] is None else f"{in_percent(row['value'])}%",
            row["state"],
            str(row["epochs"]),
            *(_number(row["options"].get(name, "-")) for name in names),
        ]
        for row in ordered
    ]
    shown = text_table(["trial", "robust", "state", "epochs", *names], cells)
    failed = [f"trial {row['number']} failed: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join([shown, *failed])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
