"""The state of a training run between two steps: what a resumed run needs to go on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from aalp.errors import RunError
from aalp.store.checkpoint import read_metadata, read_tensors, write_tensors
from aalp.store.run import RunDirectory
from aalp.training.averaging import Averager


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        best_robust, best_clean: validation accuracy of the best weights so far, in [0, 1]; -1 before the first epoch.
        best_epoch: the epoch (from 1) that gave them, 0 before the first.
        sums: running sums over the images of the epoch that is under way, by column.
        seconds: time spent training in all.
    """

    step: int = 0
    best_robust: float = -1.0
    best_clean: float = -1.0
    best_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def save_state(
    run: RunDirectory, progress: Progress, classifier: nn.Module, averager: Averager, optimizer: torch.optim.Optimizer
) -> None:
    """Write the state under the number of its step, and drop all but the newest ones.

    Randomness needs no state: every step derives its seeds from its number (see `aalp.seeding`).
    """
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in classifier.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in averager.shadow.state_dict().items()}
    for name, parameter in classifier.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    write_tensors(run.state(progress.step), tensors, {"kind": "state", "progress": asdict(progress)})
    run.drop_old_states()


def load_state(run: RunDirectory, classifier: nn.Module, averager: Averager, optimizer: torch.optim.Optimizer) -> Progress:
    """Bring model, average and optimizer to the newest saved state; returns where the run stood.

    Raises:
        RunError: there is no state, or it belongs to another model.
    """
    state = newest_state(run)
    tensors, metadata = read_tensors(state)
    try:
        classifier.load_state_dict(_under("model.", tensors))
        averager.shadow.load_state_dict(_under("average.", tensors))
    except RuntimeError as error:
        raise RunError(f"'{state}' does not fit the run's model: {str(error).splitlines()[0]}") from error
    momenta = _under("momentum.", tensors)
    for name, parameter in classifier.named_parameters():
        if name in momenta:
            # As the optimizer made it: on the parameter's device, in its memory layout.
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momenta[name])
    return Progress(**metadata["progress"])


def newest_state(run: RunDirectory) -> Path:
    """The file of the newest saved state.

    Raises:
        RunError: there is none, or it is not a state.
    """
    states = run.states()
    if not states:
        raise RunError(f"'{run.path}' has no saved state to resume from: start a new run")
    read_metadata(states[-1])
    return states[-1]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
