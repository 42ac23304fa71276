"""What a GPU would see of a run, as far as a machine without one can tell; tests/gpu/ has the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.training.devices import resolve_precision
from aalp.training.loop import fit
from aalp.training.plan import Fit


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_on_a_gpu_auto_is_bf16_where_it_is_computed_and_not_emulated(
    native: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # An emulation would say yes to whoever does not exclude it.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve_precision("auto") == precision
    assert resolve_precision("32-true") == "32-true"


def test_a_step_does_not_make_the_host_wait_for_number_after_number(fit_plan: Callable[..., Fit]) -> None:
    """On a GPU every number that is fetched by itself stalls it; a step of AALP has a dozen."""
    plan = fit_plan(options={"epochs": 3}, objective=AALP(dropout=GuidedDropout(ramp=0.0)))
    with torch.profiler.profile() as found:
        steps = fit(plan).step
    fetched = sum(event.count for event in found.key_averages() if event.key == "aten::_local_scalar_dense")
    # Validation fetches two a batch; the steps none, beyond the one list that each of them makes of its numbers.
    assert fetched < steps == 12


def test_every_random_number_of_a_run_comes_from_a_generator_of_its_device(
    fit_plan: Callable[..., Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator of another device is an error on a GPU, and works by chance without one."""
    devices: list[torch.device | str] = []
    real = torch.Generator

    class Noted(real):  # type: ignore[misc, valid-type]
        def __new__(cls, device: torch.device | str = "unnamed") -> torch.Generator:
            devices.append(device)
            return real("cpu" if device == "unnamed" else device)

    monkeypatch.setattr(torch, "Generator", Noted)
    fit(fit_plan(options={"epochs": 1, "augment": "crop+flip"}, objective=AALP(dropout=GuidedDropout(ramp=0.0))))
    # The order of an epoch is drawn on the CPU everywhere, one an epoch; steps and validation name the run's device.
    assert devices.count("unnamed") == 1
    assert devices.count(torch.device("cpu")) == len(devices) - 1 >= 5
