"""`aalp train`: train a classifier into a run directory."""

from __future__ import annotations

import dataclasses
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
from aalp.commands.evaluate import evaluate_model, report
from aalp.commands.fine_tuning import start_from
from aalp.commands.loading import load_model, verify_on
from aalp.data.sources import DataOptions, Source, load_source
from aalp.data.split import channel_statistics
from aalp.errors import InterruptedRunError, OptionError, RunError
from aalp.evaluation.attacks import attack_by_name
from aalp.method.pgd import AttackOptions
from aalp.models.catalog import ModelOptions, architecture, build, is_own_code
from aalp.models.classifier import Classifier
from aalp.models.published import Tell
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
        data: digits, npz:FILE, folder:DIR, csv:FILE, hf:FOLDER_OR_NAME, or torchvision:NAME (MNIST, FashionMNIST, CIFAR10, \
CIFAR100, SVHN).
        model: small-cnn, thin-resnet, preact-resnet18, wide-resnet28-10, wide-resnet34-10, timm:NAME, torchvision:NAME, \
hf:FOLDER_OR_NAME, package.module:factory.
        objective: standard, at, alp, clp, trades, mart, aalp, aalp-no-dropout or aalp-no-weights.
        seed: of the start weights, the data order and the attacks.
        run: directory to make; by default the next free runs/OBJECTIVE-DATA-NNN.
        resume: a run directory to go on with, with the options it was started with; with --config or --data it is \
started if there is none yet, so that one command both starts and continues a run.
        evaluate: evaluate on the test split afterwards, as `aalp evaluate` does.
        quiet: show no progress.
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
    classifier = build_classifier(options, source, display.warn, begun)
    steps_per_epoch(source.train, training.batch_size)
    if resume is not None and begun:
        directory = RunDirectory(resume)
        newest_state(directory)
    else:
        short = data.partition(":")[2] or data
        directory = _start(resume or run or free_path(Path("runs"), f"{objective}-{Path(short).stem.lower()}"), options)
    display.say(describe(options, source, directory.path))
    if uneven := about_classes(source, training.balance):
        display.say(uneven)
    try:
        train_run(directory, options, source, classifier, display, resuming=begun)
        if evaluate:
            print_out(report(evaluate_run(directory, options, source, display)))
    except InterruptedRunError as error:
        again = resume_command(directory.path, options) + (" --evaluate" if evaluate else "")
        raise InterruptedRunError(error.signal_number, again) from error
    print_out(f"run: {directory.path}")


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
        "architecture": architecture(classifier, options["model_options"]),
    }
    plan = Fit(
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
    with display.bar():
        return fit(plan, resume=resuming)


def evaluate_run(directory: RunDirectory, options: Mapping[str, Any], source: Source, display: Display) -> dict[str, Any]:
    """Evaluate a run on its test (or validation) split into evaluations/SPLIT.json, unless that is there; the record."""
    wanted: EvaluationOptions = options["evaluation"]
    weights = directory.weights(wanted.weights)
    record_path = directory.evaluations / f"{wanted.split}.json"
    if record_path.is_file():
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
    )


def build_classifier(
    options: Mapping[str, Any], source: Source, tell: Tell = lambda line: None, begun: bool = False
) -> Classifier:
    """The classifier, with start weights that depend on the seed and the options alone, seen to run on the training images.

    Args:
        tell: called with a line on what a user should know of the start weights.
        begun: whether a state will be loaded over it, so that start weights are not read.
    """
    wanted: ModelOptions = options["model_options"]
    if begun:
        wanted = dataclasses.replace(wanted, pretrained=False, init_from=None)
    seed_global_generators(derive_seed("start", options["seed"]))
    classifier = build(
        options["model"],
        len(source.classes),
        source.image_shape,
        wanted,
        channel_statistics(source.train),
        source.classes,
        tell=tell,
    )
    if wanted.init_from is not None:
        start_from(classifier, wanted.init_from, wanted.mean is None, source.classes, tell)
    if wanted.channels_last:
        classifier.to(memory_format=torch.channels_last)
    verify_on(classifier, source.train, options["model"])
    return classifier


def about_classes(source: Source, balance: str) -> str:
    """One line on how the classes differ in size and what balancing does about it; "" where neither is the case."""
    counts = torch.bincount(source.train.labels, minlength=len(source.classes))
    few, many = int(counts.argmin()), int(counts.argmax())
    if balance == "none" and counts[many] < UNEQUAL * counts[few]:
        return ""
    line = (
        f"{len(source.classes)} classes of {counts[few]} ('{source.classes[few]}') to {counts[many]} "
        f"('{source.classes[many]}') training images"
    )
    if balance == "classes":
        return f"{line}, each drawn equally often"
    return f"{line}; --training.balance classes would draw each equally often"


UNEQUAL = 1.5
"""Times as many images from which on classes are called out for their size."""


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
