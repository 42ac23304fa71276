"""`aalp train`: train a classifier into a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from aalp.commands.config import (
    EvaluationOptions,
    MethodOptions,
    ThreatOptions,
    build_objective,
    same_options,
    split_names,
    to_plain,
)
from aalp.commands.console import Display, command_line, print_out
from aalp.commands.dry_run import evaluation_cost, show, training_cost
from aalp.commands.evaluate import evaluate_model, report
from aalp.commands.loading import load_model, verify_on
from aalp.commands.opening import whole_split
from aalp.data.sources import DataOptions, Source, load_source
from aalp.data.split import channel_statistics
from aalp.errors import InterruptedRunError, OptionError, RunError
from aalp.evaluation.attacks import attack_by_name
from aalp.method.pgd import AttackOptions
from aalp.models.catalog import ModelOptions, build, is_own_code
from aalp.models.classifier import Classifier
from aalp.seeding import derive_seed, seed_global_generators
from aalp.store.files import write_atomically
from aalp.store.records import read_record
from aalp.store.run import RunDirectory, free_path
from aalp.training.loop import Fit, fit, steps_per_epoch
from aalp.training.options import CheckpointOptions, TrainingOptions
from aalp.training.state import Progress, newest_state


def train(
    data: str = "digits",
    model: str = "small-cnn",
    objective: str = "aalp",
    seed: int = 0,
    run: Path | None = None,
    resume: Path | None = None,
    evaluate: bool = False,
    quiet: bool = False,
    dry_run: bool = False,
    trust_model_code: bool = False,
    threat: ThreatOptions = ThreatOptions(),
    attack: AttackOptions = AttackOptions(),
    method: MethodOptions = MethodOptions(),
    training: TrainingOptions = TrainingOptions(),
    checkpoint: CheckpointOptions = CheckpointOptions(),
    data_options: DataOptions = DataOptions(),
    model_options: ModelOptions = ModelOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
) -> None:
    """Train a classifier.

    Without --config and --data this trains on scikit-learn's digits with the preset `digits`.

    Args:
        data: digits, npz:FILE, folder:DIR, or torchvision:NAME (MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN).
        model: small-cnn, thin-resnet, preact-resnet18, wide-resnet28-10, wide-resnet34-10, timm:NAME, package.module:factory.
        objective: standard, at, alp, clp, trades, mart, aalp, aalp-no-dropout or aalp-no-weights.
        seed: of the start weights, the data order and the attacks.
        run: directory to make; by default the next free runs/OBJECTIVE-DATA-NNN.
        resume: a run directory to go on with, with the options it was started with; with --config or --data it is \
started if there is none yet, so that one command both starts and continues a run.
        evaluate: evaluate on the test split afterwards, as `aalp evaluate` does.
        quiet: show no progress.
        dry_run: print the resolved options and what it would cost, from a probe of 10 steps; write nothing.
        trust_model_code: let --resume run the code that the run's own config.yaml names as package.module:factory.
        threat: what the adversary may do.
        attack: the attack used in training.
        method: numbers of the objective.
        training: how to train.
        checkpoint: when states are saved, and how many are kept.
        data_options: how the data is read.
        model_options: how the model is built.
        evaluation: what --evaluate measures.
    """
    options: dict[str, Any] = {
        "data": data,
        "model": model,
        "objective": objective,
        "seed": seed,
        "threat": threat,
        "attack": attack,
        "method": method,
        "training": training,
        "checkpoint": checkpoint,
        "data_options": data_options,
        "model_options": model_options,
        "evaluation": evaluation,
    }
    display = Display(quiet)
    check(options)
    if run is not None and resume is not None:
        raise OptionError(f"--run is '{run}' and --resume is '{resume}': give one of them, --resume starts a run as well")
    if trust_model_code and resume is None:
        raise OptionError("--trust-model-code is given without --resume: a model that --model names is run without it")
    begun = resume is not None and RunDirectory(resume).begun
    if resume is not None and begun:
        RunDirectory.open(resume)
        same_options(resume, options, f"go on with `{resume_command(resume, options)}` alone, or start another --run")
    source = load_source(data, options["data_options"])
    # Whatever can fail on bad input does so before anything is written.
    classifier = build_classifier(options, source)
    steps_per_epoch(source.train, training.batch_size)
    if dry_run:
        show(options, _cost(options, source, classifier, display, _steps_done(resume) if begun and resume else 0, evaluate))
        return
    if resume is not None and begun:
        directory = RunDirectory(resume)
        newest_state(directory)
    else:
        short = data.partition(":")[2] or data
        directory = _start(resume or run or free_path(Path("runs"), f"{objective}-{Path(short).stem.lower()}"), options)
    display.say(describe(options, source, directory.path))
    try:
        progress = train_run(directory, options, source, classifier, display, resuming=begun)
        if evaluate:
            evaluated = evaluate_run(directory, options, source, display)
            print_out(report(evaluated), {"evaluation": evaluated})
    except InterruptedRunError as error:
        again = resume_command(directory.path, options) + (" --evaluate" if evaluate else "")
        raise InterruptedRunError(error.signal_number, again) from error
    print_out(f"run: {directory.path}", results(directory, progress))


def results(directory: RunDirectory, progress: Progress) -> dict[str, Any]:
    """What a finished run tells programs: where it lies, and its figures on the validation images."""
    return {
        "run": str(directory.path),
        "weights": {which: str(directory.weights(which)) for which in ("best", "last")},
        "steps": progress.step,
        "seconds": progress.seconds,
        "best_epoch": progress.best_epoch,
        "validation_clean": progress.best_clean,
        "validation_robust": progress.best_robust,
    }


def _cost(
    options: Mapping[str, Any], source: Source, classifier: Classifier, display: Display, done: int, evaluated: bool
) -> dict[str, dict[str, Any]]:
    cost = run_cost(options, source, classifier, display, done)
    return cost if evaluated else {"training": cost["training"]}


def _steps_done(run: Path) -> int:
    """How far the newest saved state of a run is."""
    states = RunDirectory(run).states()
    return int(states[-1].stem.rpartition("-")[2]) if states else 0


def resume_command(path: Path, options: Mapping[str, Any]) -> str:
    """The command that goes on with a run."""
    return f"aalp train --resume {path}" + (" --trust-model-code" if is_own_code(options["model"]) else "")


def check(options: Mapping[str, Any], strict: bool = True) -> None:
    """Refuse options that cannot work, before anything is read or written."""
    build_objective(options["objective"], options["method"], strict)
    options["threat"].build()
    for name in split_names(options["evaluation"].attacks):
        if name not in ("clean", "autoattack"):
            attack_by_name(name)


def train_run(
    directory: RunDirectory,
    options: Mapping[str, Any],
    source: Source,
    classifier: Classifier,
    display: Display,
    resuming: bool,
    strict: bool = True,
) -> Progress:
    """Train a classifier into a run directory, from the start or from where it stands.

    Raises:
        AalpError: see `aalp.training.loop.fit`.
    """
    plan = training_plan(directory, options, source, classifier, display, strict)
    with display.bar():
        return fit(plan, resume=resuming)


def training_plan(
    directory: RunDirectory,
    options: Mapping[str, Any],
    source: Source,
    classifier: Classifier,
    display: Display,
    strict: bool = True,
) -> Fit:
    """What the training loop needs, from the options of a run."""
    training: TrainingOptions = options["training"]
    threat = options["threat"].build()
    metadata = {
        "model": options["model"],
        "objective": options["objective"],
        "seed": options["seed"],
        "classes": list(source.classes),
        "image_shape": list(source.image_shape),
        "threat": {"norm": options["threat"].norm, "eps": threat.eps},
        "data": {"name": source.name, "digest": source.digest},
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
    }
    return Fit(
        classifier=classifier,
        objective=build_objective(options["objective"], options["method"], strict),
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


def run_cost(
    options: Mapping[str, Any], source: Source, classifier: Classifier, display: Display, done: int = 0, strict: bool = True
) -> dict[str, dict[str, Any]]:
    """What training a run and evaluating it would cost, apart."""
    wanted: EvaluationOptions = options["evaluation"]
    plan = training_plan(RunDirectory(Path()), options, source, classifier, display, strict)
    split = whole_split(source, wanted.split)
    count = min(len(split), wanted.images or len(split))
    training = training_cost(plan, done)
    attacks = split_names(wanted.attacks)
    return {
        "training": training,
        "evaluation": evaluation_cost(classifier, split, plan.threat, attacks, count, wanted.batch_size, trained=False),
    }


def evaluate_run(directory: RunDirectory, options: Mapping[str, Any], source: Source, display: Display) -> dict[str, Any]:
    """Evaluate a run on its test (or validation) split into evaluations/SPLIT.json, unless that is there; the record."""
    wanted: EvaluationOptions = options["evaluation"]
    weights = directory.weights(wanted.weights)
    record_path = directory.evaluations / f"{wanted.split}.json"
    if record_path.is_file():
        return {**read_record(record_path, "evaluation"), "path": str(record_path)}
    return evaluate_model(
        load_model(weights, options["model"]),
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
    )


def build_classifier(options: Mapping[str, Any], source: Source) -> Classifier:
    """The classifier, with start weights that depend on the seed alone, seen to run on the training images."""
    seed_global_generators(derive_seed("start", options["seed"]))
    classifier = build(
        options["model"],
        len(source.classes),
        source.image_shape,
        options["model_options"],
        channel_statistics(source.train),
    )
    if options["model_options"].channels_last:
        classifier.to(memory_format=torch.channels_last)
    verify_on(classifier, source.train, options["model"])
    return classifier


def write_config(path: Path, options: Mapping[str, Any]) -> None:
    """Write options as YAML that --config accepts."""
    write_atomically(path, yaml.safe_dump(to_plain(options), sort_keys=False).encode())


def describe(options: Mapping[str, Any], source: Source, path: Path) -> str:
    """One line on what is about to be trained."""
    threat = options["threat"]
    return (
        f"{options['objective']} on {source.name}: {len(source.train)} training, {len(source.validation)} validation, "
        f"{len(source.test)} test images of {'x'.join(map(str, source.image_shape))}; {options['model']}, "
        f"{threat.norm} eps {threat.eps}, {options['training'].epochs} epochs; run {path}"
    )


def _start(path: Path, options: Mapping[str, Any]) -> RunDirectory:
    directory = RunDirectory.create(path)
    try:
        write_config(directory.config, options)
    except RunError:
        path.rmdir()
        raise
    return directory
