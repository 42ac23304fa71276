"""The training loop: epochs, schedule, validation, checkpoints, signals. The one place that knows about devices."""

from __future__ import annotations

import csv
import io
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from aalp.data.augment import augment
from aalp.data.loaders import Loader, balanced_order, epoch_order
from aalp.data.split import Split
from aalp.errors import DataError, DivergedError, InterruptedRunError, RunError
from aalp.method.objectives import Objective
from aalp.method.pgd import AttackOptions, evaluating, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.seeding import derive_seed, seed_global_generators
from aalp.stopping import noted_signals
from aalp.store.checkpoint import write_tensors
from aalp.store.files import write_atomically
from aalp.store.run import RunDirectory
from aalp.training.averaging import Averager
from aalp.training.options import CheckpointOptions, TrainingOptions
from aalp.training.schedule import one_cycle, step_down
from aalp.training.state import Progress, load_state, save_state
from aalp.training.step import OuterLoss, TrainingStep


@dataclass(frozen=True)
class Fit:
    """Everything a training run is made of.

    Attributes:
        classifier: trained in place; the averaged weights go to the run directory.
        run: where everything that is made lies.
        metadata: JSON that travels with the weights (how to build the model, classes, threat, ...).
        report: called after each epoch with its row of metrics.
        tick: called after each step with (step, steps in all, loss).
        warn: called with one line on what a user should know of and need not stop for.
    """

    classifier: Classifier
    objective: Objective
    threat: Threat
    train: Split
    validation: Split
    run: RunDirectory
    metadata: Mapping[str, Any]
    attack: AttackOptions
    options: TrainingOptions
    checkpoint: CheckpointOptions = CheckpointOptions()
    seed: int = 0
    workers: int = 0
    report: Callable[[Mapping[str, Any]], None] = lambda row: None
    tick: Callable[[int, int, float], None] = lambda step, total, loss: None
    warn: Callable[[str], None] = lambda line: warnings.warn(line, stacklevel=2)


def fit(plan: Fit, resume: bool = False) -> Progress:
    """Train to the end, from the start or from the run's newest saved state.

    On a CPU, in one process and with the same number of threads, a run that was stopped or killed at any moment and
    resumed makes the same bytes as one that was not.

    Raises:
        DivergedError: the loss stopped being finite; the weights of the step before are saved.
        InterruptedRunError: SIGINT, SIGTERM or SIGUSR1 arrived; the state is saved.
        RunError: the state cannot be written (the last one is intact), or none can be read.
        DataError: a batch is larger than the training split.
    """
    options = plan.options
    fabric = Fabric(accelerator="auto", devices=1, precision=resolve_precision(options.precision), loggers=_loggers(plan.run))
    fabric.launch()
    plan.classifier.to(fabric.device)
    optimizer = torch.optim.SGD(
        plan.classifier.parameters(), lr=options.lr, momentum=0.9, nesterov=True, weight_decay=options.weight_decay
    )
    averager = Averager(plan.classifier, options.ema)
    progress = load_state(plan.run, plan.classifier, averager, optimizer, plan.warn) if resume else Progress()
    plan.run.remove_leftovers()
    # The state of the global generators is irrelevant here: every step sets it.
    wrapped, wrapped_optimizer = fabric.setup(OuterLoss(plan.classifier, plan.objective), optimizer)
    step = TrainingStep(
        fabric=fabric,
        module=wrapped,
        classifier=plan.classifier,
        objective=plan.objective,
        threat=plan.threat,
        attack=plan.attack,
        optimizer=wrapped_optimizer,
        awp=options.awp,
        awp_start=options.awp_start,
        clip=options.clip,
    )
    trainer = _Trainer(plan, fabric, step, averager, optimizer, progress)
    try:
        with noted_signals() as received:
            trainer.run_to_end(received)
    finally:
        for logger in fabric.loggers:  # their writer threads end here, not somewhere in what comes next
            logger.finalize("finished")
    return progress


@dataclass
class _Trainer:
    """The loop's moving parts."""

    plan: Fit
    fabric: Fabric
    step: TrainingStep
    averager: Averager
    optimizer: torch.optim.Optimizer
    progress: Progress
    clock: float = 0.0
    """When the time spent training was last counted."""
    saved_at: float = 0.0
    """When a state was last saved."""

    def run_to_end(self, received: list[int]) -> None:
        plan, options = self.plan, self.plan.options
        loader = Loader(plan.train, options.batch_size, self.fabric.device, plan.workers)
        per_epoch = steps_per_epoch(plan.train, options.batch_size)
        validation = Loader(plan.validation, 500, self.fabric.device, plan.workers)
        rows = _read_rows(plan.run, self.progress.step // per_epoch)
        plan.classifier.train()
        if self.progress.step == 0:
            self._save()  # a full disk or a folder that cannot be written to shows now, not after an epoch
        for epoch in range(self.progress.step // per_epoch, options.epochs):
            self.clock = self.saved_at = time.perf_counter()
            order = self._order(epoch)[: per_epoch * options.batch_size]
            for images, labels in loader.batches(order, start=self.progress.step - epoch * per_epoch):
                self._one_step(images, labels, per_epoch * options.epochs)
                if self.progress.step % per_epoch != 0 and (received or self._is_due()):
                    self._save()
                    self._stop_if(received)
            self._count_time()
            rows.append(self._end_epoch(epoch, validation))
            # The state last: where it says that an epoch is done, what the epoch leaves behind is there.
            _write_rows(plan.run, rows)
            self._save()
            plan.report(rows[-1])
            self.fabric.log_dict({k: v for k, v in rows[-1].items() if isinstance(v, float)}, step=epoch + 1)
            if epoch + 1 < options.epochs:
                self._stop_if(received)

    def _order(self, epoch: int) -> Tensor:
        if self.plan.options.balance == "classes":
            return balanced_order(self.plan.train.labels, self.plan.seed, epoch)
        return epoch_order(len(self.plan.train), self.plan.seed, epoch)

    def _stop_if(self, received: list[int]) -> None:
        if received:
            raise InterruptedRunError(received[0], f"aalp train --resume {self.plan.run.path}")

    def _is_due(self) -> bool:
        return time.perf_counter() - self.saved_at >= self.plan.checkpoint.seconds()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.progress.epoch_seconds += now - self.clock
        self.clock = now

    def _one_step(self, images: Tensor, labels: Tensor, total_steps: int) -> None:
        plan, options, progress = self.plan, self.plan.options, self.progress
        share = progress.step / total_steps
        if options.schedule == "one-cycle":
            # The very first step of a rise from 0 would not move: it gets one step's worth.
            factor = max(one_cycle(share, options.warmup), 1 / total_steps)
        else:
            factor = step_down(share, options.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * factor
        seed = derive_seed("step", plan.seed, progress.step)
        generator = torch.Generator(self.fabric.device).manual_seed(seed)
        seed_global_generators(seed)  # for random layers inside the network
        images = augment(images, options.augment, generator)
        loss, parts, logits = self.step.losses(images, labels, share, generator)
        if not torch.isfinite(loss):
            self.optimizer.zero_grad()
            self._save()
            terms = ", ".join(f"{name} {float(value):g}" for name, value in parts.items())
            raise DivergedError(
                f"the loss is {float(loss)} at step {progress.step} ({terms or 'one term'}): lower --training.lr or set "
                f"--training.clip 1; the weights before that step are in {plan.run.state(progress.step)}"
            )
        self.step.update()
        self.averager.update(progress.step)
        progress.step += 1
        accuracy = (logits.argmax(1) == labels).float().mean()
        for name, value in {"loss": loss, **parts, "train_accuracy": accuracy}.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + float(value) * len(labels)
        progress.sums["images"] = progress.sums.get("images", 0.0) + len(labels)
        plan.tick(progress.step, total_steps, float(loss))

    def _end_epoch(self, epoch: int, validation: Loader) -> dict[str, Any]:
        progress = self.progress
        seconds, progress.epoch_seconds = progress.epoch_seconds, 0.0
        images = progress.sums.pop("images")
        row: dict[str, Any] = {"epoch": epoch + 1, "step": progress.step, "lr": self.optimizer.param_groups[0]["lr"]}
        # In an order of their own: a state that was saved within the epoch has lost the one in which they came.
        names = sorted(progress.sums, key=lambda name: (name != "loss", name))
        row |= {name: progress.sums[name] / images for name in names}
        progress.sums = {}
        clean, robust = self._validate(validation)
        row |= {"validation_clean": clean, "validation_robust": robust}
        row |= {"images_per_second": images / seconds, "seconds": progress.seconds}
        # Training without an adversary is judged on clean images: its most robust epoch is one that has learned nothing.
        judged, best = (robust, clean), (progress.best_robust, progress.best_clean)
        if self.plan.objective.inner is None:
            judged, best = judged[::-1], best[::-1]
        # Among equals the later epoch: its weights are averaged over more.
        if judged >= best:
            progress.best_robust, progress.best_clean, progress.best_epoch = robust, clean, epoch + 1
            self._export("best", epoch + 1)
        self._export("last", epoch + 1)
        return row

    def _validate(self, validation: Loader) -> tuple[float, float]:
        """Clean and PGD accuracy of the averaged weights on the validation images (0, 0 without any)."""
        classifier, plan = self.averager.shadow, self.plan
        assert isinstance(classifier, Classifier)
        clean = robust = 0
        for number, (images, labels) in enumerate(validation.batches()):
            seed = derive_seed("validation", plan.seed, number)
            generator = torch.Generator(self.fabric.device).manual_seed(seed)
            seed_global_generators(seed)
            with self.fabric.autocast(), evaluating(classifier):
                adversarial = perturb(
                    classifier, images, labels, plan.threat, plan.options.validation_steps, generator=generator
                )
                with torch.no_grad():
                    right = classifier(images).argmax(1) == labels
                    holds = classifier(adversarial).argmax(1) == labels
            clean += int(right.sum())
            robust += int((right & holds).sum())
        count = max(1, len(validation.split))
        return clean / count, robust / count

    def _export(self, which: str, epoch: int) -> None:
        metadata = {"kind": "weights", **self.plan.metadata, "epoch": epoch}
        write_tensors(self.plan.run.weights(which), self.averager.shadow.state_dict(), metadata)

    def _save(self) -> None:
        if self.progress.sums:  # within an epoch; at its end the time is counted already
            self._count_time()
        save_state(self.plan.run, self.progress, self.plan.classifier, self.averager, self.optimizer, self.plan.checkpoint.keep)
        # Saving is not training: its time counts for neither clock.
        self.clock = self.saved_at = time.perf_counter()


def steps_per_epoch(train: Split, batch_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
        DataError: not even one.
    """
    if len(train) < batch_size:
        raise DataError(
            f"the training split has {len(train)} images, fewer than one batch of {batch_size}: "
            "give a smaller --training.batch_size"
        )
    return len(train) // batch_size


def resolve_precision(precision: str) -> Any:
    """What `auto` means on this machine: bf16 only where the hardware multiplies it, since emulation is many times slower."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bf16-mixed" if native is not None and native() else "32-true"


def _loggers(run: RunDirectory) -> list[Any]:
    """TensorBoard where it is installed; the CSV is always written."""
    if find_spec("tensorboard") is None:
        return []
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    return [TensorBoardLogger(root_dir=run.path, name="tensorboard", version="")]


def _read_rows(run: RunDirectory, epochs: int) -> list[dict[str, Any]]:
    """The rows of the epochs that are done, from before the run was interrupted."""
    if epochs == 0 or not run.metrics.is_file():
        return []
    try:
        with run.metrics.open(newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)][:epochs]
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"'{run.metrics}' is not a readable table: {error}; move it away to go on without it") from error
    if any(None in row or row.keys() != rows[0].keys() for row in rows):
        raise RunError(f"'{run.metrics}' has rows of different lengths: move it away to go on without it")
    return rows


def _write_rows(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    columns = dict.fromkeys(column for row in rows for column in row)
    writer = csv.DictWriter(text, fieldnames=list(columns))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(run.metrics, text.getvalue().encode())
