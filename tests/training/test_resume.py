"""What a run needs to be gone on with exactly, beyond its tensors: no generator's state, a whole file, a disk with room."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_logs import rows_without_times

from aalp import stopping
from aalp.errors import InterruptedRunError, OptionError, RunError
from aalp.models.classifier import Classifier
from aalp.store.run import RunDirectory
from aalp.training.loop import fit
from aalp.training.options import CheckpointOptions
from aalp.training.plan import Fit

MakeFit = Callable[..., Fit]


def left_behind(run: RunDirectory) -> dict[str, Any]:
    """Weights byte by byte, and metrics except for times."""
    rows = [list(row.items()) for row in rows_without_times(run)]
    return {"rows": rows, **{which: run.weights(which).read_bytes() for which in ("last", "best")}}


def stopping_at(step: int, number: signal.Signals = signal.SIGTERM) -> Callable[[int, int, float], None]:
    return lambda at, total, loss: signal.raise_signal(number) if at == step else None


class Restless(nn.Module):
    """A network that draws from every global generator there is, in training and in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.drop, self.logits = nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.flatten(images)
        noise = 0.01 * (random.random() + np.random.rand() + float(torch.rand(())))
        return self.logits(self.drop(features * (1 + noise)))


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_network_that_uses_every_global_generator_resumes_exactly(stop: int, fit_plan: MakeFit) -> None:
    def make(name: str, **changes: Any) -> Fit:
        torch.manual_seed(0)
        classifier = Classifier(Restless())
        classifier.verified = True  # two passes over the same images differ: just what this is about
        return fit_plan(name, {"ema": 0.0}, classifier=classifier, **changes)

    undisturbed = make("undisturbed")
    fit(undisturbed)
    stopped = make("stopped", tick=stopping_at(stop))
    with pytest.raises(InterruptedRunError):
        fit(stopped)
    # What the process that goes on has drawn before must not matter.
    random.seed(stop)
    np.random.seed(stop)
    torch.manual_seed(stop)
    fit(make("stopped"), resume=True)
    assert left_behind(undisturbed.run) == left_behind(stopped.run)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_each_stopping_signal_saves_and_has_its_own_exit_code(name: str, fit_plan: MakeFit) -> None:
    number = signal.Signals[name]
    plan = fit_plan(tick=stopping_at(3, number))
    with pytest.raises(InterruptedRunError, match="stopped, and saved: continue with `aalp train --resume") as caught:
        fit(plan)
    assert caught.value.exit_code == {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}[name]
    assert plan.run.states()[-1] == plan.run.state(3)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_the_echo_of_a_signal_does_not_keep_the_run_from_saving(
    name: str, fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = signal.Signals[name]

    def twice(step: int, total: int, loss: float) -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)

    plan = fit_plan(tick=twice)
    with pytest.raises(InterruptedRunError):
        fit(plan)
    assert plan.run.states()[-1] == plan.run.state(1)

    # A later one is meant to end it.
    monkeypatch.setattr(stopping, "ECHO_SECONDS", -1.0)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(fit_plan("later", tick=twice))
    finally:
        signal.signal(number, before)


def saved_steps(plan: Fit) -> list[str]:
    """The states as they are there after each step."""
    seen: list[str] = []

    def look(step: int, total: int, loss: float) -> None:
        seen.append(" ".join(str(int(path.stem.removeprefix("step-"))) for path in plan.run.states()))

    fit(Fit(**{**vars(plan), "tick": look}))
    return seen


def test_states_are_saved_as_time_passes_and_the_last_n_are_kept(fit_plan: MakeFit) -> None:
    often = CheckpointOptions(every="0.0000001s", keep=3)
    # A tick comes before the save of its step.
    expected = ["0", "0 1", "0 1 2", "1 2 3", "2 3 4", "3 4 5", "4 5 6", "5 6 7"]
    assert saved_steps(fit_plan("often", checkpoint=often)) == expected
    rarely = CheckpointOptions(every="1h", keep=1)
    assert saved_steps(fit_plan("rarely", checkpoint=rarely)) == ["0"] * 4 + ["4"] * 4


def test_saving_often_changes_nothing(fit_plan: MakeFit) -> None:
    plans = [fit_plan("plain"), fit_plan("often", checkpoint=CheckpointOptions(every="0.001s", keep=1))]
    for plan in plans:
        fit(plan)
    assert left_behind(plans[0].run) == left_behind(plans[1].run)


@pytest.mark.parametrize(
    ("every", "seconds"), [("30s", 30), ("10min", 600), ("2h", 7200), ("1d", 86400), ("1.5h", 5400), ("10 min", 600)]
)
def test_durations_are_read(every: str, seconds: float) -> None:
    assert CheckpointOptions(every=every).seconds() == seconds


@pytest.mark.parametrize("every", ["", "10", "min", "-1s", "0s", "1e3s", "10 minutes", "1min30s", "inf s", "nan"])
def test_what_is_no_duration_is_refused(every: str) -> None:
    with pytest.raises(OptionError, match=r"checkpoint every is '.*': give a number with s, min, h or d"):
        CheckpointOptions(every=every)


def test_keeping_no_state_is_refused() -> None:
    with pytest.raises(OptionError, match="checkpoint keep is 0: it has to be at least 1"):
        CheckpointOptions(keep=0)


FAILURES = {"full": errno.ENOSPC, "read-only": errno.EROFS, "not allowed": errno.EACCES, "over quota": errno.EDQUOT}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize(("module", "call"), [(tempfile, "mkstemp"), (os, "fsync"), (os, "replace")])
def test_a_disk_that_refuses_to_write_ends_the_run_in_one_line_with_the_last_state_left(
    module: Any, call: str, failure: int, fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = fit_plan("undisturbed")
    fit(undisturbed)
    plan = fit_plan("refused", checkpoint=CheckpointOptions(every="0.001s"))

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(failure, os.strerror(failure))

    def fails_from_now_on(step: int, total: int, loss: float) -> None:
        if step == 6:
            monkeypatch.setattr(module, call, refuse)

    with pytest.raises(RunError) as caught:
        fit(Fit(**{**vars(plan), "tick": fails_from_now_on}))
    monkeypatch.undo()
    message = str(caught.value)
    assert message == f"'{plan.run.state(6)}' could not be written: {os.strerror(failure)}; free space or choose another folder"
    assert plan.run.states() == [plan.run.state(4), plan.run.state(5)]
    assert not list(plan.run.path.rglob("*.partial"))
    fit(fit_plan("refused"), resume=True)
    assert left_behind(undisturbed.run) == left_behind(plan.run)


def test_a_disk_that_is_full_from_the_start_is_noticed_before_the_first_step(
    fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    steps: list[int] = []
    with pytest.raises(RunError, match="No space left on device"):
        fit(fit_plan(tick=lambda step, total, loss: steps.append(step)))
    assert steps == []


def test_a_file_that_the_kernel_cuts_off_is_an_error_and_not_a_state(fit_plan: MakeFit) -> None:
    """A real refusal: the kernel lets no file grow past a limit smaller than a state."""
    plan = fit_plan()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(step: int, total: int, loss: float) -> None:
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    try:
        with pytest.raises(RunError, match="could not be written: File too large; free space"):
            fit(Fit(**{**vars(plan), "tick": limit}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert plan.run.states() == [plan.run.state(0)]
    assert not list(plan.run.path.rglob("*.partial"))


def test_what_a_killed_write_left_is_removed_when_the_run_goes_on(fit_plan: MakeFit) -> None:
    plan = fit_plan(tick=stopping_at(3))
    with pytest.raises(InterruptedRunError):
        fit(plan)
    left = plan.run.path / "states" / ".step-00000004.safetensors.abc.partial"
    left.write_bytes(b"half a state")
    fit(fit_plan(), resume=True)
    assert not left.exists()
