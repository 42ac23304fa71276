"""`aalp train`: train a classifier into a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aalp.commands.beginning import begin, begin_next, resume_command
from aalp.commands.building import build_classifier
from aalp.commands.config import EvaluationOptions, MethodOptions, ThreatOptions, same_options, to_plain
from aalp.commands.console import Display
from aalp.commands.dry_run import show
from aalp.commands.evaluation_record import report
from aalp.commands.one_run import (
    check,
    check_evaluation,
    describe,
    evaluate_run,
    run_cost,
    run_options,
    train_run,
    warn_if_alone,
)
from aalp.commands.opening import check_same_training
from aalp.commands.pictures import log_adversarial
from aalp.commands.side_by_side import alone_at
from aalp.data.sources import DataOptions, Source, check_columns, load_source
from aalp.distributed import ALONE, joined
from aalp.errors import DataError, InterruptedRunError, OptionError
from aalp.method.pgd import AttackOptions
from aalp.models.catalog import ModelOptions
from aalp.report.figures import counted
from aalp.store.run import RunDirectory
from aalp.training.devices import Strategy
from aalp.training.options import CheckpointOptions, TrainingOptions
from aalp.training.plan import steps_per_epoch
from aalp.training.state import Progress, newest_state
from aalp.training.trackers import TrackerName, log_figures, tracking


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
    strategy: Strategy = "ddp",
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
        objective: standard, at, alp, clp, trades, mart, aalp, aalp-kl, aalp-no-dropout, aalp-no-weights or aalp-no-schedule.
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
        strategy: ddp: each process keeps all weights; fsdp, for large models: each keeps its part of weights, gradients, \
momentum and average, and has the weights whole only while they are used.
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
    options = run_options(locals())
    check(options)
    if run is not None and resume is not None:
        raise OptionError(f"--run is '{run}' and --resume is '{resume}': give one of them, --resume starts a run as well")
    if trust_model_code and resume is None:
        raise OptionError("--trust-model-code is given without --resume: a model that --model names is run without it")
    begun = resume is not None and RunDirectory(resume).begun
    if resume is not None and begun:
        RunDirectory.open(resume)
        same_options(resume, options, f"go on with `{resume_command(resume, options)}` alone, or start another --run")
    if not begun:
        check_columns(data, options["data_options"])
    ranks = ALONE if dry_run else joined(devices, nodes)
    display = Display(quiet, ranks)
    if not dry_run:
        warn_if_alone(strategy, ranks, display)
    with display.bar():
        try:
            source = ranks.first_of_machine(lambda: load_source(data, options["data_options"], display.reading))
        except DataError as error:
            if not begun:
                raise
            # Another --data is refused as any other option is.
            file, there = RunDirectory(Path(str(resume))).config, "as seen from where the run was begun: go on with it there"
            raise DataError(
                f"{error} (data in '{file}', {there}, or write into that line where these images are now)"
            ) from error
    # Whatever can fail on bad input does so before anything is written.
    if resume is not None and begun:
        ranks.from_main(partial(check_same_training, RunDirectory(resume), source))
    kept = resume is not None and newest_state(RunDirectory(resume)) is not None
    classifier = build_classifier(options, source, display.warn, begun=kept)
    steps_per_epoch(source.train, training.batch_size)
    if evaluate:
        check_evaluation(evaluation, options["threat"], source)
    if dry_run:
        done = _steps_done(resume) if begun and resume else 0
        show(options, run_cost(options, source, classifier, display, done, evaluate=evaluate))
        return
    if resume is not None and begun:
        directory = RunDirectory(resume)
    else:
        directory = ranks.from_main(lambda: _begun(resume or run, options))
    display.say(describe(options, source, directory.path))
    if begun and _steps_done(directory.path) >= training.epochs * steps_per_epoch(source.train, training.batch_size):
        display.say(f"trained already: all of its {counted(training.epochs, 'epoch')}")
    if uneven := about_classes(source, training.balance):
        display.say(uneven)
    try:
        with alone_at(directory, ranks), tracking(directory, tracker, to_plain(options), ranks) as loggers:
            progress = train_run(
                directory, options, source, classifier, display, begun, ranks=ranks, loggers=loggers, strategy=strategy
            )
            log_adversarial(loggers, directory, options, source)
            if evaluate:
                evaluated = evaluate_run(directory, options, source, display, ranks)
                display.result(report(evaluated), {"evaluation": evaluated})
                log_figures(loggers, evaluated)
    except InterruptedRunError as error:
        given = {"devices": devices, "nodes": nodes, "strategy": strategy}
        again = [f"--{name} {value}" for name, value in given.items() if value not in (1, "ddp")]
        words = [resume_command(directory.path, options), *["--evaluate"] * evaluate, *again]
        raise InterruptedRunError(error.signal_number, " ".join(words)) from error
    display.result(f"run: {directory.path}", results(directory, progress, judged=len(source.validation) > 0))


def _begun(path: Path | None, options: Mapping[str, Any]) -> RunDirectory:
    """A new run directory: this one, or the next free one of its name."""
    if path is not None:
        return begin(path, options)
    short = options["data"].partition(":")[2] or options["data"]
    return begin_next(Path("runs"), f"{options['objective']}-{Path(short).stem.lower()}", options)


def results(directory: RunDirectory, progress: Progress, judged: bool) -> dict[str, Any]:
    """What a finished run tells programs: where it lies, and its figures on the validation images, None without any."""
    return {
        "run": str(directory.path),
        "weights": {which: str(directory.weights(which)) for which in ("best", "last")},
        "steps": progress.step,
        "seconds": progress.seconds,
        "best_epoch": progress.best_epoch,
        "validation_clean": progress.best_clean if judged else None,
        "validation_robust": progress.best_robust if judged else None,
    }


def _steps_done(run: Path) -> int:
    """How far the newest saved state of a run is."""
    states = RunDirectory(run).states()
    return int(states[-1].stem.rpartition("-")[2]) if states else 0


def about_classes(source: Source, balance: str) -> str:
    """One line on how the classes differ in size and what balancing does about it; "" where neither is the case."""
    counts = torch.bincount(source.train.labels, minlength=len(source.classes))
    if empty := [name for name, count in zip(source.classes, counts.tolist(), strict=True) if count == 0]:
        which = f"{len(empty)} of {len(source.classes)} classes"
        return f"{which} have no training images, '{empty[0]}' to begin with: the network will not know them"
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
