"""One run, as `train`, `compare` and `search` make it: its checks, its model, its training and evaluation, its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger

from aalp.commands.config import EvaluationOptions, ThreatOptions, build_objective, method_numbers, split_names
from aalp.commands.console import Display, command_line
from aalp.commands.dry_run import evaluation_cost
from aalp.commands.evaluate import evaluate_model
from aalp.commands.loading import load_model
from aalp.commands.opening import whole_split
from aalp.commands.training_cost import training_cost
from aalp.data.arrays import largest_class
from aalp.data.sources import Source
from aalp.data.split import resident_bytes
from aalp.distributed import ALONE, Ranks
from aalp.evaluation.attacks import check_attacks
from aalp.evaluation.autoattack import check_exact
from aalp.method.pgd import check_start
from aalp.models.catalog import architecture
from aalp.models.classifier import Classifier
from aalp.shown import in_percent
from aalp.store.records import read_record
from aalp.store.run import RunDirectory
from aalp.training.devices import Strategy, resolve_precision
from aalp.training.loop import CALMER, fit
from aalp.training.options import TrainingOptions
from aalp.training.plan import Fit
from aalp.training.state import Progress
from aalp.training.trackers import check_tracker
from aalp.training.validation import gives_one_answer

RUN_OPTIONS = (
    "data",
    "model",
    "objective",
    "seed",
    "threat",
    "attack",
    "method",
    "training",
    "checkpoint",
    "data_options",
    "model_options",
    "evaluation",
    "tracker",
)
"""The options that a run is made of, in the order of its config.yaml."""


def run_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a verb's arguments by name those that a run is made of."""
    return {name: arguments[name] for name in RUN_OPTIONS if name in arguments}


def warn_if_alone(strategy: Strategy, ranks: Ranks, display: Display) -> None:
    """Say that one process cannot share its weights with anybody; it may go on with what several have begun."""
    if strategy == "fsdp" and ranks.size == 1:
        display.warn("strategy is fsdp and there is one process: it keeps all weights, as with ddp; give --devices")


def check(options: Mapping[str, Any], strict: bool = True) -> None:
    """Refuse options that cannot work, before anything is read or written."""
    check_tracker(options.get("tracker"))
    objective = build_objective(options["objective"], options["method"], strict)
    check_start(objective.inner, options["attack"].random_start)
    options["threat"].build()
    check_attacks(split_names(options["evaluation"].attacks))


def check_evaluation(wanted: EvaluationOptions, threat: ThreatOptions, source: Source) -> None:
    """Refuse an evaluation that this data cannot have, before hours of training.

    Raises:
        DataError: the split has no images.
        OptionError: AutoAttack by its authors' package, and fewer classes or other images than that needs.
    """
    whole_split(source, wanted.split)
    if wanted.exact:
        check_exact(split_names(wanted.attacks), threat.build(), source.image_shape, len(source.classes))


def describe(options: Mapping[str, Any], source: Source, path: Path) -> str:
    """One line on what is about to be trained."""
    threat = options["threat"]
    return (
        f"{options['objective']} on {source.name}: {len(source.train)} training, {len(source.validation)} validation, "
        f"{len(source.test)} test images of {'x'.join(map(str, source.image_shape))}; {options['model']}, "
        f"{threat.norm} eps {threat.eps}, {options['training'].epochs} epochs, "
        f"{resolve_precision(options['training'].precision)}; {_where(options, source)}; run {path}"
    )


def _where(options: Mapping[str, Any], source: Source) -> str:
    """Where the images are: what stays in memory is said with its size."""
    held = resident_bytes(source.train, source.validation, source.test)
    if held:
        return f"images in memory, {held / 1e6:.0f} MB" if held >= 1e6 else "images in memory, under 1 MB"
    return f"images read from disk by {options['data_options'].workers} workers"


def training_plan(
    directory: RunDirectory,
    options: Mapping[str, Any],
    source: Source,
    classifier: Classifier,
    display: Display,
    strict: bool,
) -> Fit:
    """What the training loop needs, from the options of a run."""
    training: TrainingOptions = options["training"]
    threat, objective = options["threat"].build(), build_objective(options["objective"], options["method"], strict)
    metadata = {
        "model": options["model"],
        "objective": options["objective"],
        "method": method_numbers(objective),
        "step_sizes": options["attack"].step_sizes(),
        "seed": options["seed"],
        "classes": list(source.classes),
        "image_shape": list(source.image_shape),
        "threat": {"norm": options["threat"].norm, "eps": threat.eps},
        "data": {"name": source.name, "digest": source.digest, "validation_digest": source.validation_digest},
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "architecture": architecture(classifier, options["model_options"]),
    }
    return Fit(
        classifier=classifier,
        objective=objective,
        threat=threat,
        train=source.train,
        validation=source.validation,
        run=directory,
        metadata=metadata,
        attack=options["attack"],
        options=training,
        checkpoint=options["checkpoint"],
        seed=options["seed"],
        workers=options["data_options"].workers,
        report=lambda row: display.epoch(row, training.epochs),
        tick=display.training_step,
        warn=display.warn,
    )


def train_run(
    directory: RunDirectory,
    options: Mapping[str, Any],
    source: Source,
    classifier: Classifier,
    display: Display,
    resuming: bool,
    strict: bool = True,
    ranks: Ranks = ALONE,
    loggers: Sequence[Logger] = (),
    on_epoch: Callable[[Mapping[str, Any]], None] = lambda row: None,
    strategy: Strategy = "ddp",
) -> Progress:
    """Train a classifier into a run directory, from the start or from where it stands.

    Args:
        loggers: of the tracker (see `tracking`).
        on_epoch: called with each epoch's row of metrics once its state is saved; what it raises ends the training.
        strategy: what the ranks share.

    Raises:
        AalpError: see `aalp.training.loop.fit`.
    """
    plan = training_plan(directory, options, source, classifier, display, strict)

    def report_epoch(row: Mapping[str, Any]) -> None:
        plan.report(row)
        on_epoch(row)

    with display.bar():
        spread = dataclasses.replace(plan, ranks=ranks, loggers=loggers, strategy=strategy)
        progress = fit(dataclasses.replace(spread, report=report_epoch), resume=resuming)
    # A run that knew more before says so in the epoch in which it falls to this, see `has_collapsed`.
    clean, robust = progress.best_clean, progress.best_robust
    if clean > 0 and gives_one_answer(clean, robust, largest_class(source.validation.labels)):
        display.warn(
            f"no epoch did better than one answer for all, right on {in_percent(clean)}% of the validation images: "
            f"train for more --training.epochs, {CALMER}"
        )
    return progress


def evaluate_run(
    directory: RunDirectory, options: Mapping[str, Any], source: Source, display: Display, ranks: Ranks
) -> dict[str, Any]:
    """Evaluate a run on its test (or validation) split into evaluations/SPLIT.json, unless that is there; the record."""
    wanted: EvaluationOptions = options["evaluation"]
    weights = directory.weights(wanted.weights)
    record_path = directory.evaluations / f"{wanted.split}.json"
    if ranks.from_main(record_path.is_file):
        return {**read_record(record_path, "evaluation"), "path": str(record_path)}
    return evaluate_model(
        load_model(weights, options["model"], options["model_options"]),
        source,
        options["threat"],
        split_names(wanted.attacks),
        wanted.split,
        wanted.images,
        wanted.batch_size,
        wanted.seed,
        record_path,
        {"weights": str(weights), "command": command_line()},
        display,
        ranks,
        wanted.exact,
    )


def run_cost(
    options: Mapping[str, Any],
    source: Source,
    classifier: Classifier,
    display: Display,
    done: int = 0,
    strict: bool = True,
    evaluate: bool = True,
) -> dict[str, dict[str, Any]]:
    """What training a run and evaluating it would cost, apart."""
    plan = training_plan(RunDirectory(Path()), options, source, classifier, display, strict)
    cost = {"training": training_cost(plan, done)}
    if evaluate:
        wanted: EvaluationOptions = options["evaluation"]
        split, attacks = whole_split(source, wanted.split), split_names(wanted.attacks)
        count = min(len(split), wanted.images or len(split))
        cost["evaluation"] = evaluation_cost(classifier, split, plan.threat, attacks, count, wanted.batch_size, trained=False)
    return cost
