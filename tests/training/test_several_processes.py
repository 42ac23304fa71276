"""Whole trainings in two gloo processes: the weights of one, one run directory, one that goes on in any number."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import in_ranks
from training_logs import rows_without_times

from aalp.distributed import ALONE, Ranks
from aalp.errors import InterruptedRunError, OptionError, RunError
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.store.checkpoint import read_tensors
from aalp.store.run import RunDirectory
from aalp.training.devices import check_same_step, check_shares, has_unused
from aalp.training.loop import fit
from aalp.training.options import CheckpointOptions
from aalp.training.plan import Fit

MakeFit = Callable[..., Fit]

SETTINGS: dict[str, Any] = {"precision": "32-true", "augment": "crop+flip", "batch_size": 15, "awp": 0.005, "clip": 1.0}
"""Shares of a batch of 15 are unequal."""


def plan_of(fit_plan: MakeFit, name: str, ranks: Ranks = ALONE, **changes: Any) -> Fit:
    plan = fit_plan(name, SETTINGS, objective=AALP(dropout=GuidedDropout(ramp=0.0)))
    return replace(plan, ranks=ranks, **changes)


def interrupted(plan: Fit, at: int) -> None:
    """Train, and get a signal after step `at`."""

    def tick(step: int, total: int, loss: float) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(InterruptedRunError):
        fit(replace(plan, tick=tick))


def assert_close(one: RunDirectory, other: RunDirectory) -> None:
    """The same weights and metrics, up to the rounding of sums in another order."""
    for which in ("last", "best"):
        (tensors, about), (others, also) = (read_tensors(run.weights(which)) for run in (one, other))
        assert about["epoch"] == also["epoch"]
        for name, values in tensors.items():
            assert torch.allclose(values, others[name], rtol=1e-4, atol=1e-6), (which, name)
    for row, also_row in zip(rows_without_times(one), rows_without_times(other), strict=True):
        assert row.keys() == also_row.keys()
        for name, value in row.items():
            assert float(value) == pytest.approx(float(also_row[name]), rel=1e-4, abs=1e-5), name


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def runs(fit_plan_in: MakeFit, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """What one and two processes trained: whole, and stopped in the middle of the first epoch and resumed."""
    folder = tmp_path_factory.mktemp("several")

    def make(*words: Any, **changes: Any) -> Fit:
        return fit_plan_in(folder, *words, strategy=request.param, **changes)

    def two(ranks: Ranks) -> list[str]:
        said: list[str] = []
        fit(plan_of(make, "two", ranks, report=lambda row: said.append("row"), tick=lambda *step: said.append("tick")))
        # The signal comes to the second process alone; both stop.
        second = replace(plan_of(make, "two-two", ranks), checkpoint=CheckpointOptions(every="1h"))
        if ranks.rank == 1:
            losses = second.classifier.network.register_forward_hook(count_to(5))
        stopped = False
        try:
            fit(second)
        except InterruptedRunError:
            stopped = True
        assert stopped
        if ranks.rank == 1:
            losses.remove()
        if ranks.rank == 0:
            shutil.copytree(folder / "two-two", folder / "two-one")
        ranks.wait()
        said.append(f"stopped at {second.run.states()[-1].stem}")
        fit(plan_of(make, "two-two", ranks), resume=True)
        fit(plan_of(make, "one-two", ranks), resume=True)
        batch_norm = replace(plan_of(make, "norm", ranks), classifier=norm_classifier())
        fit(batch_norm)
        statistics = torch.cat(
            [value.flatten() for name, value in batch_norm.classifier.state_dict().items() if "running" in name]
        )
        return [*said, str(statistics.double().sum().item())]

    def count_to(calls: int) -> Callable[..., None]:
        seen = [0]

        def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
            seen[0] += module.training
            if seen[0] == calls:
                os.kill(os.getpid(), signal.SIGUSR1)

        return hook

    def norm_classifier() -> Classifier:
        torch.manual_seed(0)
        return Classifier(thin_resnet(3, 1))

    fit(plan_of(make, "one"))
    interrupted(plan_of(make, "one-two"), at=3)
    told = in_ranks(2, two)
    fit(plan_of(make, "two-one"), resume=True)
    (folder / "told").write_text(repr(told))
    return folder


def test_two_processes_train_the_weights_and_metrics_of_one(runs: Path) -> None:
    assert_close(RunDirectory(runs / "one"), RunDirectory(runs / "two"))
    assert len(rows_without_times(RunDirectory(runs / "two"))) == 2


def test_only_the_main_process_says_anything_and_replicas_stay_the_same(runs: Path) -> None:
    main, other = eval((runs / "told").read_text())  # noqa: S307 (written above)
    assert main[:-2].count("tick") == 8
    assert main[:-2].count("row") == 2
    assert len(other) == 2
    assert main[-1] == other[-1]  # BatchNorm's statistics


def test_a_signal_to_one_process_stops_both_at_the_same_step(runs: Path) -> None:
    main, other = eval((runs / "told").read_text())  # noqa: S307
    assert main[-2] == other[-2]
    step = int(main[-2].rpartition("-")[2])
    assert 0 < step < 8
    assert step % 4 != 0


def test_a_run_stopped_in_two_processes_goes_on_in_two_with_the_same_bytes(runs: Path) -> None:
    for which in ("last", "best"):
        paths = [RunDirectory(runs / name).weights(which) for name in ("two", "two-two")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert rows_without_times(RunDirectory(runs / "two")) == rows_without_times(RunDirectory(runs / "two-two"))


@pytest.mark.parametrize("name", ["one-two", "two-one"])
def test_a_run_goes_on_in_another_number_of_processes(name: str, runs: Path) -> None:
    assert_close(RunDirectory(runs / "one"), RunDirectory(runs / name))


def test_fewer_images_than_processes_are_refused() -> None:
    with pytest.raises(OptionError, match="training batch_size is 2 and 3 processes share each batch"):
        check_shares(2, Ranks(0, 3, 0, 3))
    check_shares(3, Ranks(0, 3, 0, 3))


def test_unused_weights_are_found(small_classifier: Callable[..., Classifier]) -> None:
    classifier = small_classifier(3).train()
    assert not has_unused(classifier, (1, 8, 8))
    classifier.network.spare = torch.nn.Linear(2, 2)
    assert has_unused(classifier, (1, 8, 8))
    assert classifier.training


def test_machines_that_see_different_folders_are_told(tmp_path: Path) -> None:
    class Apart(Ranks):
        def largest(self, *numbers: int) -> list[int]:
            return [12, 0]  # of (step, -step) on a rank at step 12 and on one at step 0

    with pytest.raises(RunError, match="step 12 on one machine and at step 0 on another"):
        check_same_step(RunDirectory(tmp_path), 12, Apart())
    check_same_step(RunDirectory(tmp_path), 12, ALONE)
