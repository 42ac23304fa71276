"""`aalp train`: train a classifier into a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric.loggers.logger import Logger

from aalp.commands.config import (
    EvaluationOptions,
    MethodOptions,
    ThreatOptions,
    build_objective,
    same_options,
    split_names,
    to_plain,
)
from aalp.commands.console import Display, command_line
from aalp.commands.dry_run import evaluation_cost, show, training_cost
from aalp.commands.evaluate import evaluate_model, report
from aalp.commands.fine_tuning import start_from
from aalp.commands.loading import load_model, verify_on
from aalp.commands.opening import whole_split
from aalp.data.sources import DataOptions, Source, load_source
from aalp.data.split import as_float, channel_statistics, resident_bytes
from aalp.distributed import ALONE, Ranks, joined
from aalp.errors import InterruptedRunError, OptionError, RunError
from aalp.evaluation.attacks import attack_by_name
from aalp.method.pgd import AttackOptions, perturb
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
from aalp.training.trackers import TrackerName, check_tracker, log_figures, log_pictures, tracking


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
    devices: int = 1,
    nodes: int = 1,
    tracker: TrackerName | None = None,
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
        dry_run: print the resolved options and what it would cost, from a probe of 10 steps; write nothing.
        trust_model_code: let --resume run the code that the run's own config.yaml names as package.module:factory.
        devices: processes on this machine that share each batch, one a GPU, or on the CPU; torchrun and srun say it themselves.
        nodes: machines, each started with the same command and MASTER_ADDR, MASTER_PORT and NODE_RANK; see docs/distributed.md.
        tracker: tensorboard, wandb or mlflow, each an extra; by default TensorBoard where it is installed. A resumed run \
goes on in its own entry.
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
        "tracker": tracker,
    }
    check(options)
    if run is not None and resume is not None:
        raise OptionError(f"--run is '{run}' and --resume is '{resume}': give one of them, --resume starts a run as well")
    if trust_model_code and resume is None:
        raise OptionError("--trust-model-code is given without --resume: a model that --model names is run without it")
    begun = resume is not None and RunDirectory(resume).begun
    if resume is not None and begun:
        RunDirectory.open(resume)
        same_options(resume, options, f"go on with `{resume_command(resume, options)}` alone, or start another --run")
    ranks = ALONE if dry_run else joined(devices, nodes)
    display = Display(quiet, ranks)
    source = ranks.first_of_machine(lambda: load_source(data, options["data_options"]))
    # Whatever can fail on bad input does so before anything is written.
    classifier = build_classifier(options, source, display.warn, begun)
    steps_per_epoch(source.train, training.batch_size)
    if dry_run:
        show(options, _cost(options, source, classifier, display, _steps_done(resume) if begun and resume else 0, evaluate))
        return
    if resume is not None and begun:
        directory = RunDirectory(resume)
        newest_state(directory)
    else:
        short = data.partition(":")[2] or data
        stem = f"{objective}-{Path(short).stem.lower()}"
        directory = ranks.from_main(lambda: _start(resume or run or free_path(Path("runs"), stem), options))
    display.say(describe(options, source, directory.path))
    if uneven := about_classes(source, training.balance):
        display.say(uneven)
    try:
        with tracking(directory, tracker, to_plain(options), ranks) as loggers:
            progress = train_run(directory, options, source, classifier, display, begun, ranks=ranks, loggers=loggers)
            log_adversarial(loggers, directory, options, source)
            if evaluate:
                evaluated = evaluate_run(directory, options, source, display, ranks)
                log_figures(loggers, evaluated, training.epochs)
                display.result(report(evaluated), {"evaluation": evaluated})
    except InterruptedRunError as error:
        again = resume_command(directory.path, options) + (" --evaluate" if evaluate else "")
        again += "".join(f" --{name} {count}" for name, count in (("devices", devices), ("nodes", nodes)) if count > 1)
        raise InterruptedRunError(error.signal_number, again) from error
    display.result(f"run: {directory.path}", results(directory, progress))


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
    check_tracker(options.get("tracker"))
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
    ranks: Ranks = ALONE,
    loggers: Sequence[Logger] = (),
    on_epoch: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Progress:
    """Train a classifier into a run directory, from the start or from where it stands.

    Args:
        loggers: of the tracker (see `tracking`).
        on_epoch: called with each epoch's row of metrics once its state is saved; what it raises ends the training.

    Raises:
        AalpError: see `aalp.training.loop.fit`.
    """
    plan = training_plan(directory, options, source, classifier, display, strict)

    def report_epoch(row: Mapping[str, Any]) -> None:
        plan.report(row)
        on_epoch(row)

    with display.bar():
        return fit(dataclasses.replace(plan, report=report_epoch, ranks=ranks, loggers=loggers), resume=resuming)


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
        "architecture": architecture(classifier, options["model_options"]),
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


def evaluate_run(
    directory: RunDirectory, options: Mapping[str, Any], source: Source, display: Display, ranks: Ranks = ALONE
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


PICTURES = 8
"""Images shown to a tracker."""


def log_adversarial(loggers: Sequence[Logger], directory: RunDirectory, options: Mapping[str, Any], source: Source) -> None:
    """Log a sheet of clean validation images, what the training attack makes of them with the best weights, and the change."""
    split = source.validation if len(source.validation) > 0 else source.train
    if not loggers or not directory.weights("best").is_file():
        return
    rows = torch.arange(min(PICTURES, len(split)))
    clean, labels = as_float(split.read(rows)), split.labels[rows]
    loaded = load_model(directory.weights("best"), options["model"], options["model_options"])
    threat, attack = options["threat"].build(), options["attack"]
    generator = torch.Generator().manual_seed(derive_seed("pictures", options["seed"]))
    adversarial = perturb(loaded.classifier, clean, labels, threat, attack.steps, generator=generator)
    # The largest change that Linf allows becomes black or white.
    change = (adversarial - clean) / (2 * (adversarial - clean).abs().max().clamp_min(1e-9)) + 0.5
    with torch.no_grad():
        said = [loaded.classifier(images).argmax(1).tolist() for images in (clean, adversarial)]
    names = source.classes
    told = [f"{names[y]}: {names[c]} -> {names[a]}" for y, c, a in zip(labels.tolist(), *said, strict=True)]
    rows_are = f"clean; adversarial (PGD-{attack.steps}, {threat.norm} eps {threat.eps:.4g}); change"
    caption = f"{rows_are}. Label: clean -> adversarial prediction: {', '.join(told)}"
    pictures, epoch = torch.stack([clean, adversarial, change]), int(loaded.metadata.get("epoch", 0))
    log_pictures(loggers, "adversarial", pictures, caption, epoch)


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
        f"{threat.norm} eps {threat.eps}, {options['training'].epochs} epochs; {_where(options, source)}; run {path}"
    )


def _where(options: Mapping[str, Any], source: Source) -> str:
    """Where the images are: what stays in memory is said with its size."""
    held = resident_bytes(source.train, source.validation, source.test)
    if held:
        return f"images in memory, {held / 1e6:.0f} MB" if held >= 1e6 else "images in memory, under 1 MB"
    return f"images read from disk by {options['data_options'].workers} workers"


def _start(path: Path, options: Mapping[str, Any]) -> RunDirectory:
    directory = RunDirectory.create(path)
    try:
        write_config(directory.config, options)
    except RunError:
        path.rmdir()
        raise
    return directory
