"""The training loop: epochs, schedule, validation, checkpoints, signals. The one place that knows about devices."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import get_total_norm

from aalp.data.arrays import largest_class
from aalp.data.augment import augment
from aalp.data.loaders import Loader, order_of
from aalp.errors import DivergedError, InterruptedRunError
from aalp.method.pgd import AttackOptions
from aalp.models.classifier import Classifier
from aalp.seeding import derive_seed, seed_global_generators
from aalp.shown import in_percent
from aalp.stopping import noted_signals
from aalp.store.checkpoint import write_tensors
from aalp.training import overfitting
from aalp.training.averaging import Averager
from aalp.training.devices import (
    batch_statistics,
    check_same_step,
    check_shares,
    make_fabric,
    norm_buffers,
    resolve_precision,
    used,
)
from aalp.training.host_memory import keep_freed_memory
from aalp.training.metrics import read_rows, write_rows
from aalp.training.plan import Fit, steps_per_epoch
from aalp.training.schedule import rate_factor
from aalp.training.sharded_weights import Weights
from aalp.training.state import Progress, load_state, save_state
from aalp.training.step import OuterLoss, TrainingStep
from aalp.training.validation import accuracies, has_collapsed, images_at_once

CALMER = "lower --training.lr or set --training.clip 1"
"""What to do about a training that diverged."""


def fit(plan: Fit, resume: bool = False) -> Progress:
    """Train to the end, from the start or from the run's newest saved state.

    On a CPU, in one process and with the same number of threads, a run that was stopped or killed at any moment and
    resumed makes the same bytes as one that was not.

    Raises:
        DivergedError: the loss or the weights stopped being finite; the newest weights that were are saved.
        InterruptedRunError: SIGINT, SIGTERM or SIGUSR1 arrived; the state is saved.
        RunError: the state cannot be written (the last one is intact), or none can be read.
        DataError: a batch is larger than the training split.
    """
    options, ranks, image_shape = plan.options, plan.ranks, plan.train.image_shape
    check_shares(options.batch_size, ranks)
    precision = resolve_precision(options.precision)
    fabric = make_fabric(ranks, precision, plan.loggers, plan.classifier, image_shape, plan.strategy)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    averager = Averager(plan.classifier, options.ema)
    warn = plan.warn if ranks.is_main else (lambda line: None)
    progress, momenta = load_state(plan.run, plan.classifier, averager, warn) if resume else (Progress(), {})
    check_same_step(plan.run, progress.step, ranks)
    # Shared out before they go to a device: it need not hold what this rank does not keep.
    shared = used(plan.classifier, image_shape) if plan.strategy == "fsdp" and ranks.size > 1 else ()
    weights, average = (Weights(module, fabric.device, ranks, shared) for module in (plan.classifier, averager.shadow))
    averager.follow(weights, average)
    optimizer = torch.optim.SGD(
        weights.parameters, lr=options.lr, momentum=0.9, nesterov=True, weight_decay=options.weight_decay
    )
    weights.set_momenta(optimizer, momenta)
    if ranks.is_main:
        plan.run.remove_leftovers()
    # The state of the global generators is irrelevant here: every step sets it.
    wrapped, wrapped_optimizer = fabric.setup(OuterLoss(plan.classifier, plan.objective, ranks), optimizer)
    step = TrainingStep(
        fabric=fabric,
        module=wrapped,
        classifier=plan.classifier,
        weights=weights,
        objective=plan.objective,
        threat=plan.threat,
        attack=plan.attack,
        optimizer=wrapped_optimizer,
        awp=options.awp,
        awp_start=options.awp_start,
        clip=options.clip,
        ranks=ranks,
    )
    trainer = _Trainer(plan, fabric, step, averager, optimizer, progress)
    with noted_signals() as received:
        trainer.run_to_end(received)
    weights.give_back()
    ranks.wait()  # what the main process wrote is there for all from here on
    trainer.stop_if_asked(received)  # in the last epoch: the run is done, and what would come after it is not wanted
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
        loader = Loader(plan.train, options.batch_size, self.fabric.device, plan.workers, plan.ranks)
        per_epoch = steps_per_epoch(plan.train, options.batch_size)
        validation = Loader(plan.validation, images_at_once(plan.validation.image_shape), self.fabric.device, plan.workers)
        constant = largest_class(plan.validation.labels)
        rows = read_rows(plan.run, self.progress.step // per_epoch)
        plan.classifier.train()
        if self.progress.step == 0:
            self._save()  # a full disk or a folder that cannot be written to shows now, not after an epoch
        for epoch in range(self.progress.step // per_epoch, options.epochs):
            self.clock = self.saved_at = time.perf_counter()
            order = order_of(plan.train.labels, options.balance == "classes", plan.seed, epoch)[
                : per_epoch * options.batch_size
            ]
            for images, labels in loader.batches(order, start=self.progress.step - epoch * per_epoch):
                self._one_step(images, labels, per_epoch * options.epochs)
                stop, due = self._agreed(received)
                if self.progress.step % per_epoch != 0 and (stop or due):
                    self._refuse_broken_weights()
                    self._save()
                    self._stop_if(stop)
            self._count_time()
            self._refuse_broken_weights()
            rows.append(self._end_epoch(epoch, validation))
            # The state last: where it says that an epoch is done, what the epoch leaves behind is there.
            if plan.ranks.is_main:
                write_rows(plan.run, rows)
            self._save()
            if plan.ranks.is_main:
                plan.report(rows[-1])
                if constant and has_collapsed(rows, constant):
                    plan.warn(f"after epoch {epoch + 1} the network gives one answer for all images: start anew, {CALMER}")
            self.fabric.log_dict({k: v for k, v in rows[-1].items() if isinstance(v, float)}, step=epoch + 1)
            if epoch + 1 < options.epochs:
                self.stop_if_asked(received)

    def stop_if_asked(self, received: list[int]) -> None:
        """Raise an InterruptedRunError where a signal reached any rank. Together."""
        self._stop_if(self._agreed(received)[0])

    def _agreed(self, received: list[int]) -> tuple[int, bool]:
        """The signal that any rank got (0 for none), and whether the main one's clock says that a state is due."""
        due = self.plan.ranks.is_main and time.perf_counter() - self.saved_at >= self.plan.checkpoint.seconds()
        stop, saving = self.plan.ranks.largest(received[0] if received else 0, int(due))
        return stop, bool(saving)

    def _stop_if(self, signal_number: int) -> None:
        if signal_number:
            self.plan.ranks.wait()  # until the state is written
            raise InterruptedRunError(signal_number, f"aalp train --resume {shlex.quote(str(self.plan.run.path))}")

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.progress.epoch_seconds += now - self.clock
        self.clock = now

    def _one_step(self, images: Tensor, labels: Tensor, total_steps: int) -> None:
        plan, options, progress = self.plan, self.plan.options, self.progress
        share = progress.step / total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * rate_factor(options, share, total_steps)
        seed = derive_seed("step", plan.seed, progress.step)
        generator = torch.Generator(self.fabric.device).manual_seed(seed)
        # For random layers inside the network: never the numbers that decide a flip or a random start, which would couple
        # the two. Each rank has other images, and draws others.
        seed_global_generators(derive_seed("rank", seed, plan.ranks.rank))
        images = augment(images, options.augment, generator, plan.ranks.shard(len(labels)))
        if plan.classifier.contiguous:  # crops are in channels last
            images = images.contiguous()
        attack = self._attack(share)
        before = [statistic.clone() for statistic in norm_buffers(plan.classifier)]
        loss, parts, logits = self.step.losses(images, labels, share, generator, attack)
        accuracy = (logits.argmax(1) == labels).float().mean()
        measured = {"loss": loss, **parts, "train_accuracy": accuracy}
        # All at once: each number that is fetched by itself makes the host wait for the device.
        values = dict(zip(measured, torch.stack([value.float() for value in measured.values()]).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            self._give_up(values["loss"], {name: values[name] for name in parts}, before)
        self.step.update()
        plan.ranks.average(batch_statistics(plan.classifier))
        self.averager.update(progress.step)
        progress.step += 1
        if plan.objective.inner is not None:
            values["attack_steps"] = attack.steps
            if overfitting.is_watched(attack) and progress.step % overfitting.EVERY == 0:
                self._watch(images, labels, generator, attack, share)
        for name, value in values.items():
            progress.add(name, value * len(labels))
        progress.add("images", len(labels))
        if plan.ranks.is_main:
            plan.tick(progress.step, total_steps, values["loss"])

    def _give_up(self, loss: float, parts: Mapping[str, float], statistics: Sequence[Tensor]) -> NoReturn:
        """Save the state before this step, with the batch statistics of then, and raise a DivergedError. Together."""
        self.optimizer.zero_grad()
        for statistic, value in zip(norm_buffers(self.plan.classifier), statistics, strict=True):
            statistic.copy_(value)  # what this batch was like went into them
        self._refuse_broken_weights()
        self._save()
        self.plan.ranks.wait()
        terms, step = ", ".join(f"{name} {value:g}" for name, value in parts.items()), self.progress.step
        raise DivergedError(
            f"the loss is {loss} at step {step} ({terms or 'one term'}): {CALMER}; "
            f"the weights before that step are in {self.plan.run.state(step)}"
        )

    def _refuse_broken_weights(self) -> None:
        """Raise a DivergedError where weights are not finite, as gradients of a finite loss may have made them. Together."""
        weights = [value for value in self.averager.moving if value.numel()]
        # Fetched once an epoch or state, as a step fetches its numbers.
        (largest,) = get_total_norm([value.detach() for value in weights], math.inf).view(1).tolist()
        broken = not math.isfinite(largest)
        if self.plan.ranks.largest(int(broken))[0]:
            states = self.plan.run.states()
            kept = f"the newest weights that were are in {states[-1]}" if states else "none were saved before"
            raise DivergedError(f"the weights are not finite any more after step {self.progress.step}: {CALMER}; {kept}")

    def _attack(self, share: float) -> AttackOptions:
        """The attack of this moment of the training."""
        if self.progress.attack_steps:
            # An attack that grows may by now have as many steps, and more.
            steps = max(self.progress.attack_steps, self.plan.attack.at(share).steps)
            return overfitting.after_fallback(self.plan.attack, steps)
        return self.plan.attack.at(share)

    def _watch(self, images: Tensor, labels: Tensor, generator: torch.Generator, attack: AttackOptions, share: float) -> None:
        """Look whether the network has overfitted to the attack of training; if so, train with more steps from here on."""
        progress = self.progress
        trained, judged = overfitting.accuracies(self.step, images, labels, generator, attack, attack.eps_share(share))
        for name, value in {"watched_training_attack": trained, "watched_pgd": judged, "watches": 1.0}.items():
            progress.add(name, value)
        if overfitting.is_overfitted(trained, judged, overfitting.images_looked_at(len(labels))):
            progress.attack_steps = 3 * attack.steps
            seen = f"{in_percent(trained)}% accuracy under the attack of training, {in_percent(judged)}% under "
            seen += f"PGD-{overfitting.JUDGE.steps}"
            if self.plan.ranks.is_main:
                self.plan.warn(
                    f"catastrophic overfitting at step {progress.step}: {seen}; "
                    f"the attack takes {progress.attack_steps} steps from here on"
                )

    def _end_epoch(self, epoch: int, validation: Loader) -> dict[str, Any]:
        progress = self.progress
        seconds, progress.epoch_seconds = progress.epoch_seconds, 0.0
        means, images = progress.take_means()
        row: dict[str, Any] = {"epoch": epoch + 1, "step": progress.step, "lr": self.optimizer.param_groups[0]["lr"], **means}
        shadow, plan = self.averager.shadow, self.plan
        assert isinstance(shadow, Classifier)
        with self.averager.weights.whole():
            clean, robust = accuracies(
                shadow, validation, plan.threat, plan.options.validation_steps, plan.seed, self.fabric, plan.ranks
            )
        if len(plan.validation):  # without images there are no figures, and 0 is one
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

    def _export(self, which: str, epoch: int) -> None:
        tensors = self.averager.weights.state()
        if self.plan.ranks.is_main:
            write_tensors(self.plan.run.weights(which), tensors, {"kind": "weights", **self.plan.metadata, "epoch": epoch})

    def _save(self) -> None:
        if self.progress.sums:  # within an epoch; at its end the time is counted already
            self._count_time()
        keep = self.plan.checkpoint.keep
        about = {name: self.plan.metadata[name] for name in ("data", "method", "step_sizes") if name in self.plan.metadata}
        save_state(self.plan.run, self.progress, self.step.weights, self.averager, self.optimizer, keep, about)
        # Saving is not training: its time counts for neither clock.
        self.clock = self.saved_at = time.perf_counter()
