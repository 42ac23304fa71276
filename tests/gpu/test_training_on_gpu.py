"""A training run on the GPU: where things lie, in what precision, and that it resumes as if it had not stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_logs import rows_without_times

from aalp.data.loaders import Loader
from aalp.data.split import ResidentSplit
from aalp.errors import InterruptedRunError
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.pgd import perturb
from aalp.method.precision import full_precision
from aalp.method.threat import L2, Linf
from aalp.models.classifier import Classifier
from aalp.models.folding_in_place import folded_norms
from aalp.models.preact_resnet import thin_resnet
from aalp.store.checkpoint import read_tensors
from aalp.store.run import RunDirectory
from aalp.training.devices import resolve_precision
from aalp.training.loop import fit
from aalp.training.plan import Fit
from aalp.training.state import newest_state

MakeFit = Callable[..., Fit]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that add up in one order: exactness is promised under them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.deterministic = before[1]


class Watcher(nn.Module):
    """A linear network that notes where and in what precision its features came out."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.flatten, self.logits = nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3)
        self.seen: set[tuple[str, torch.dtype]] = set()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        self.seen.add((maps.device.type, maps.dtype))
        return self.logits(self.flatten(maps))


def test_auto_precision_is_bf16_where_the_gpu_computes_it() -> None:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert resolve_precision("auto") == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_a_run_computes_on_the_gpu_in_the_precision_that_was_asked_for(
    precision: str, dtype: torch.dtype, fit_plan: MakeFit
) -> None:
    network = Watcher()
    classifier = Classifier(network)
    classifier.verify(torch.rand(2, 1, 8, 8))
    network.seen.clear()
    fit(fit_plan(options={"epochs": 1, "precision": precision}, classifier=classifier))
    assert network.seen == {("cuda", dtype)}
    assert {(parameter.device.type, parameter.dtype) for parameter in classifier.parameters()} == {("cuda", torch.float32)}


def test_a_resident_split_moves_to_the_gpu_once_and_stays_uint8(cuda: torch.device) -> None:
    split = ResidentSplit(torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8), torch.arange(10))
    loader = Loader(split, 4, cuda)
    assert isinstance(loader.split, ResidentSplit)
    assert (loader.split.pixels.device.type, loader.split.pixels.dtype) == ("cuda", torch.uint8)
    for images, labels in loader.batches():
        assert (images.device.type, images.dtype, labels.device.type) == ("cuda", torch.float32, "cuda")


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_an_attack_draws_from_a_generator_on_the_gpu_and_stays_in_the_ball(cuda: torch.device, threat: Any) -> None:
    torch.manual_seed(0)
    classifier = Classifier(thin_resnet(3, 1)).to(cuda).eval()
    images, labels = torch.rand(6, 1, 8, 8, device=cuda), torch.tensor([0, 1, 2, 0, 1, 2], device=cuda)
    adversarial = [
        perturb(classifier, images, labels, threat, 3, generator=torch.Generator(cuda).manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(adversarial[0], adversarial[1])
    assert not torch.equal(adversarial[0], adversarial[2])
    assert all(bool(threat.contains(found, images).all()) for found in adversarial)


def test_a_folded_network_is_the_same_on_the_gpu(cuda: torch.device) -> None:
    torch.manual_seed(0)
    network = thin_resnet(3, 3).to(cuda).to(memory_format=torch.channels_last).eval()
    images = torch.rand(4, 3, 32, 32, device=cuda)
    with torch.no_grad(), full_precision():
        plain = network(images)
        with folded_norms(network):
            torch.testing.assert_close(network(images), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.usefixtures("deterministic")
def test_a_stopped_run_resumes_exactly(stop: int, precision: str, fit_plan: MakeFit) -> None:
    def make(name: str, **changes: Any) -> Fit:
        torch.manual_seed(0)
        classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)))
        objective = AALP(dropout=GuidedDropout(ramp=0.0))  # draws masks on the GPU
        options = {"precision": precision, "augment": "crop+flip"}
        return fit_plan(name, options, classifier=classifier, objective=objective, **changes)

    undisturbed = make("undisturbed")
    fit(undisturbed)
    stopped = make("stopped", tick=lambda at, total, loss: signal.raise_signal(signal.SIGTERM) if at == stop else None)
    with pytest.raises(InterruptedRunError):
        fit(stopped)
    torch.rand(stop, device="cuda")  # what the process that goes on has drawn must not matter
    fit(make("stopped"), resume=True)
    assert weights(undisturbed.run) == weights(stopped.run)
    assert rows_without_times(undisturbed.run) == rows_without_times(stopped.run)


def weights(run: RunDirectory) -> list[bytes]:
    return [run.weights(which).read_bytes() for which in ("last", "best")]


def test_a_state_that_was_saved_on_the_gpu_is_read_without_one(fit_plan: MakeFit) -> None:
    plan = fit_plan(options={"epochs": 1})
    fit(plan)
    state = newest_state(plan.run)
    assert state is not None
    assert {value.device.type for value in read_tensors(state)[0].values()} == {"cpu"}
