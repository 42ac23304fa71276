from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training_logs import rows_without_times

from aalp.errors import DivergedError, InterruptedRunError, RunError
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objective_base import Objective
from aalp.method.objectives import AT, Standard
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.store.checkpoint import read_tensors, write_tensors
from aalp.store.run import RunDirectory
from aalp.training.averaging import Averager
from aalp.training.loop import fit
from aalp.training.plan import Fit
from aalp.training.sharded_weights import Weights
from aalp.training.state import Progress, load_state, save_state

MakeFit = Callable[..., Fit]


def trained(seed: int, steps: int, layout: torch.memory_format) -> tuple[nn.Module, Averager, torch.optim.Optimizer]:
    """A small network after a few steps, with everything that belongs to it."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)).to(memory_format=layout)
    averager = Averager(module, 0.9)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(steps):
        take_step(module, averager, optimizer, step)
    return module, averager, optimizer


def take_step(module: nn.Module, averager: Averager, optimizer: torch.optim.Optimizer, step: int) -> None:
    images = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    module(images).square().mean().backward()
    optimizer.step()
    averager.update(step)


def saved(
    run: RunDirectory, progress: Progress, module: nn.Module, averager: Averager, optimizer: torch.optim.Optimizer
) -> None:
    save_state(run, progress, Weights(module), averager, optimizer)


def loaded(
    run: RunDirectory, module: nn.Module, averager: Averager, optimizer: torch.optim.Optimizer, warn: Any = lambda line: None
) -> Progress:
    progress, momenta = load_state(run, module, averager, warn)
    Weights(module).set_momenta(optimizer, momenta)
    return progress


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_loaded_state_goes_on_exactly_as_the_saved_one(steps: int, layout: torch.memory_format, tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    parts = trained(0, steps, layout)
    progress = Progress(steps, 0.1 + 0.2, 1 / 3, 2, {"loss": 0.1, "images": 5.0}, 1.7)
    saved(run, progress, *parts)
    others = trained(1, 0, layout)
    assert loaded(run, *others) == progress
    for module, averager, optimizer in (parts, others):
        take_step(module, averager, optimizer, steps)
    for one, other in zip((parts[0], parts[1].shadow), (others[0], others[1].shadow), strict=True):
        states = one.state_dict(), other.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_newest_state_is_the_one_that_is_loaded(tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    parts = trained(0, 1, torch.contiguous_format)
    for step in (9, 10, 100):
        saved(run, Progress(step), *parts)
    assert loaded(run, *parts).step == 100
    assert run.states() == [run.state(10), run.state(100)]


def test_a_run_that_was_killed_before_its_first_state_begins_at_the_start(tmp_path: Any) -> None:
    assert loaded(RunDirectory(tmp_path), *trained(0, 0, torch.contiguous_format)) == Progress()


def test_a_run_whose_states_are_gone_cannot_be_resumed(tmp_path: Any) -> None:
    (tmp_path / "metrics.csv").write_text("epoch")
    with pytest.raises(RunError, match="has no saved state to resume from: start a new run"):
        loaded(RunDirectory(tmp_path), *trained(0, 0, torch.contiguous_format))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-5] + bytes([content[-5] ^ 4]) + content[-4:],
    "zeros, as a crashed file system leaves them": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_state_is_passed_over_with_one_line(damage: Callable[[bytes], bytes], tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    parts = trained(0, 1, torch.contiguous_format)
    for step in (10, 20):
        saved(run, Progress(step), *parts)
    run.state(20).write_bytes(damage(run.state(20).read_bytes()))
    lines: list[str] = []
    assert loaded(run, *parts, lines.append).step == 10
    (line,) = lines
    assert "\n" not in line
    assert str(run.state(20)) in line
    assert "going on from 'step-00000010.safetensors', the one before it" in line
    run.state(10).write_bytes(b"")
    with pytest.raises(RunError, match=r"no saved state of .* can be read: .*step-00000020"):
        loaded(run, *parts)


def test_a_run_goes_on_from_the_state_before_a_damaged_one_to_the_same_end(fit_plan: MakeFit) -> None:
    undisturbed = run_with_stops(fit_plan, "undisturbed", [])
    with pytest.raises(InterruptedRunError):
        fit(fit_plan("damaged", tick=interrupting({6}, signal.SIGTERM)))
    run = fit_plan("damaged").run
    run.state(6).write_bytes(run.state(6).read_bytes()[:-1])
    lines: list[str] = []
    fit(fit_plan("damaged", warn=lines.append), resume=True)
    assert len(lines) == 1
    same_bytes(undisturbed, run)


@pytest.mark.parametrize(
    "progress",
    [None, [], {"step": "3"}, {"step": -1}, {"step": 1.5}, {"seconds": float("nan")}, {"sums": {"loss": "x"}}, {"more": 1}],
)
def test_a_state_whose_progress_makes_no_sense_is_refused(progress: Any, tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    write_tensors(run.state(1), {"model.w": torch.ones(1)}, {"kind": "state", "progress": progress})
    with pytest.raises(RunError, match="is not a training state"):
        loaded(run, *trained(0, 0, torch.contiguous_format))


def test_the_state_of_another_model_is_refused_in_one_line(tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    saved(run, Progress(3), *trained(0, 1, torch.contiguous_format))
    other = nn.Linear(3, 2)
    with pytest.raises(RunError, match="does not fit the run's model") as caught:
        loaded(run, other, Averager(other, 0.9), torch.optim.SGD(other.parameters(), lr=0.1))
    assert str(run.state(3)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weights_file_in_place_of_a_state_is_refused(tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    parts = trained(0, 0, torch.contiguous_format)
    write_tensors(run.state(1), parts[0].state_dict(), {"kind": "weights"})
    with pytest.raises(RunError, match="step-00000001"):
        loaded(run, *parts)


def interrupting(at: set[int], number: signal.Signals) -> Callable[[int, int, float], None]:
    return lambda step, total, loss: signal.raise_signal(number) if step in at else None


def same_bytes(one: RunDirectory, other: RunDirectory) -> None:
    """Weights byte by byte, and metrics except for times."""
    for which in ("last", "best"):
        assert one.weights(which).read_bytes() == other.weights(which).read_bytes()
    assert rows(one) == rows(other)


def rows(run: RunDirectory) -> list[list[tuple[str, str]]]:
    return [list(row.items()) for row in rows_without_times(run)]


def run_with_stops(
    make: Callable[..., Fit], name: str, stops: list[int], number: signal.Signals = signal.SIGINT
) -> RunDirectory:
    """Train to the end, interrupted after these steps and resumed each time."""
    for position, stop in enumerate(stops):
        with pytest.raises(InterruptedRunError) as caught:
            fit(make(name, tick=interrupting({stop}, number)), resume=position > 0)
        assert caught.value.exit_code == 128 + number
        assert make(name).run.states()[-1] == make(name).run.state(stop)
    plan = make(name)
    fit(plan, resume=bool(stops))
    return plan.run


@pytest.mark.parametrize(
    ("stops", "objective", "batch_norm", "options"),
    [
        ([2], AALP(dropout=GuidedDropout(ramp=0.5)), False, {"augment": "crop+flip"}),
        ([4], Standard(), False, {}),
        ([1, 3, 6], Standard(), True, {"augment": "crop+flip", "clip": 1.0}),
        ([5, 7], AALP(), True, {"awp": 0.01, "awp_start": 0.3}),
    ],
)
def test_a_run_that_was_interrupted_and_resumed_is_the_undisturbed_run_bit_by_bit(
    stops: list[int], objective: Objective, batch_norm: bool, options: dict[str, Any], fit_plan: MakeFit
) -> None:
    def make(name: str, **changes: Any) -> Fit:
        if batch_norm:
            torch.manual_seed(0)
            changes["classifier"] = Classifier(thin_resnet(3, 1)).to(memory_format=torch.channels_last)
        return fit_plan(name, options, objective=objective, **changes)

    undisturbed, resumed = run_with_stops(make, "undisturbed", []), run_with_stops(make, "resumed", stops)
    for which in ("last", "best"):
        assert undisturbed.weights(which).read_bytes() == resumed.weights(which).read_bytes()
    assert rows(undisturbed) == rows(resumed)
    one, other = (read_tensors(run.states()[-1])[0] for run in (undisturbed, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sigterm_saves_and_says_so_as_ctrl_c_does(fit_plan: MakeFit) -> None:
    undisturbed = run_with_stops(fit_plan, "undisturbed", [])
    resumed = run_with_stops(fit_plan, "resumed", [3], signal.SIGTERM)
    assert undisturbed.weights("last").read_bytes() == resumed.weights("last").read_bytes()


def test_ctrl_c_in_the_last_step_does_not_spoil_the_finished_run(fit_plan: MakeFit) -> None:
    plan = fit_plan(tick=interrupting({8}, signal.SIGINT))
    with pytest.raises(InterruptedRunError):
        fit(plan)
    assert read_tensors(plan.run.weights("last"))[1]["epoch"] == 2
    before = plan.run.weights("last").read_bytes()
    assert fit(replace(plan, tick=lambda step, total, loss: None), resume=True).step == 8
    assert plan.run.weights("last").read_bytes() == before


def test_a_second_ctrl_c_gets_through_at_once(fit_plan: MakeFit) -> None:
    # Python's own handler, which a shell takes away from what it starts in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice(step: int, total: int, loss: float) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            fit(fit_plan(tick=twice))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stop", [None, 3])
def test_signal_handlers_are_given_back(stop: int | None, fit_plan: MakeFit) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        fit(fit_plan(tick=interrupting({stop} if stop else set(), signal.SIGINT)))
    except InterruptedRunError:
        assert stop
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_resuming_a_finished_run_changes_nothing(fit_plan: MakeFit) -> None:
    run = run_with_stops(fit_plan, "run", [])
    before = {path: path.read_bytes() for path in run.path.rglob("*.safetensors")}
    assert fit(fit_plan("run"), resume=True).step == 8
    assert {path: path.read_bytes() for path in run.path.rglob("*.safetensors")} == before


def test_a_run_that_diverged_stands_where_it_was_before_the_bad_step(fit_plan: MakeFit) -> None:
    undisturbed = run_with_stops(fit_plan, "undisturbed", [])

    plan = fit_plan("diverged")
    broken = Fit(**{**vars(plan), "objective": BreaksAt(5)})
    with pytest.raises(DivergedError):
        fit(broken)
    fit(fit_plan("diverged"), resume=True)
    assert undisturbed.weights("last").read_bytes() == plan.run.weights("last").read_bytes()


class BreaksAt:
    """AT whose loss is not a number at one step."""

    def __init__(self, step: int) -> None:
        self.objective, self.step, self.calls = AT(), step, 0
        self.inner = self.objective.inner

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        loss = self.objective(*arguments, **options)
        self.calls += 1
        return replace(loss, total=loss.total * torch.nan) if self.calls > self.step else loss
