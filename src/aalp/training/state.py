"""The state of a training run between two steps: what a resumed run needs to go on as if it had not stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aalp.errors import RunError
from aalp.models.classifier import Classifier, with_own_buffers
from aalp.store.checkpoint import read_tensors, state_for, under, write_tensors
from aalp.store.run import RunDirectory
from aalp.training.averaging import Averager
from aalp.training.sharded_weights import Weights


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        best_robust, best_clean: validation accuracy of the best weights so far, in [0, 1]; -1 before the first epoch.
        best_epoch: the epoch (from 1) that gave them, 0 before the first.
        sums: running sums over the images of the epoch that is under way, by column.
        seconds: time spent training in all.
        epoch_seconds: of that, in the epoch that is under way.
        attack_steps: steps of the attack since catastrophic overfitting was seen; 0 where it was not.
    """

    step: int = 0
    best_robust: float = -1.0
    best_clean: float = -1.0
    best_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    attack_steps: int = 0

    def add(self, name: str, value: float) -> None:
        """Add to one of the sums."""
        self.sums[name] = self.sums.get(name, 0.0) + value

    def take_means(self) -> tuple[dict[str, float], float]:
        """The epoch's sums as means over its images, of what was watched now and then over the looks, and the images.

        The sums begin anew.
        """
        images, watches = self.sums.pop("images"), self.sums.pop("watches", 1.0)
        # In an order of their own: a state that was saved within the epoch has lost the one in which they came.
        names = sorted(self.sums, key=lambda name: (name != "loss", name))
        means = {name: self.sums[name] / (watches if name.startswith("watched_") else images) for name in names}
        self.sums = {}
        return means, images


def save_state(
    run: RunDirectory,
    progress: Progress,
    weights: Weights,
    averager: Averager,
    optimizer: torch.optim.Optimizer,
    keep: int = 2,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the state under the number of its step, and drop all but the newest `keep`; the main rank does. Together.

    Every tensor is whole, however the weights are shared out: any number of processes goes on with it.

    Randomness needs no state: every step derives its seeds from its number (see `aalp.seeding`). Neither does
    adversarial weight perturbation: it is undone within the step.

    Args:
        about: JSON on what is trained, and on what.

    Raises:
        RunError: the state cannot be written; those before it are as they were.
    """
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in weights.state().items()}
    tensors |= {f"average.{name}": value for name, value in averager.weights.state().items()}
    momenta = weights.joined(lambda parameter: optimizer.state.get(parameter, {}).get("momentum_buffer"))
    tensors |= {f"momentum.{name}": value for name, value in momenta.items()}
    if not weights.ranks.is_main:
        return
    write_tensors(run.state(progress.step), tensors, {"kind": "state", "progress": asdict(progress), **(about or {})})
    run.drop_old_states(keep, progress.step)


def load_state(
    run: RunDirectory,
    classifier: nn.Module,
    averager: Averager,
    warn: Callable[[str], None] = lambda line: None,
) -> tuple[Progress, dict[str, Tensor]]:
    """Bring a model and its average, both whole, to the newest saved state.

    Buffers may be other tensors afterwards: the average has to be told with `follow`.

    Args:
        warn: called with one line for each state that is damaged and therefore passed over.

    Returns:
        Where the run stood, and the momentum of each parameter that had one, by name.

    Raises:
        RunError: there is no state that can be read, or it belongs to another model.
    """
    state = newest_state(run, warn)
    if state is None:
        return Progress(), {}
    tensors, progress = _read_state(state)
    try:
        for module, prefix in ((classifier, "model."), (averager.shadow, "average.")):
            named = under(prefix, tensors)
            if isinstance(module, Classifier):  # start weights may have come with a normalisation of other channels
                with_own_buffers(module, named)
            module.load_state_dict(state_for(module, named))
        momenta = under("momentum.", tensors)
        for name, parameter in classifier.named_parameters():
            if name in momenta:
                momenta[name] = momenta[name].view_as(parameter)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"'{state}' does not fit the run's model: {str(error).splitlines()[0]}") from error
    return progress, momenta


def newest_state(run: RunDirectory, warn: Callable[[str], None] = lambda line: None) -> Path | None:
    """The file of the newest saved state that is whole, or None where the run had not come so far.

    Raises:
        RunError: none can be read, or there is none although the run has weights already.
    """
    states = run.states()
    if not states:
        if run.metrics.is_file() or any(run.weights(which).is_file() for which in ("last", "best")):
            raise RunError(f"'{run.path}' has no saved state to resume from: start a new run")
        return None
    damaged: list[str] = []
    for state in reversed(states):
        try:
            _read_state(state)
        except RunError as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            warn(f"{reason.partition(':')[0]}: going on from '{state.name}', the one before it")
        return state
    raise RunError(f"no saved state of '{run.path}' can be read: {damaged[0]}, or start a new run")


def _read_state(path: Path) -> tuple[dict[str, Tensor], Progress]:
    tensors, metadata = read_tensors(path)
    try:
        if metadata["kind"] != "state":
            raise ValueError(f"it holds {metadata['kind']}")
        return tensors, _progress(metadata["progress"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"'{path}' is not a training state ({type(error).__name__} {error}): use another checkpoint") from error


def _progress(saved: Mapping[str, Any]) -> Progress:
    progress = Progress(**saved)
    numbers = (progress.best_robust, progress.best_clean, progress.seconds, progress.epoch_seconds, *progress.sums.values())
    whole = progress.step, progress.best_epoch, progress.attack_steps
    if not all(type(number) is int and number >= 0 for number in whole) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"with the numbers {saved}")
    return progress
