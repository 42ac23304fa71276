"""Weights that lie on two gloo processes: what each keeps between steps, and what comes together again."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import in_ranks
from torch import Tensor, nn
from training_logs import rows_without_times

from aalp.distributed import ALONE, Ranks
from aalp.method.pgd import AttackOptions
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.store.checkpoint import read_tensors
from aalp.store.run import RunDirectory
from aalp.training import overfitting
from aalp.training.averaging import Averager
from aalp.training.devices import Strategy
from aalp.training.loop import fit
from aalp.training.plan import Fit
from aalp.training.sharded_weights import Weights
from aalp.training.state import Progress, load_state

MakeFit = Callable[..., Fit]


class Odd(nn.Module):
    """Whatever may be odd about parameters: sizes that no two processes divide, two formats and layouts, tied, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.linear = nn.Linear(5, 7, dtype=torch.float64)
        self.again = nn.Linear(5, 7, dtype=torch.float64)
        self.again.weight = self.linear.weight
        self.spare = nn.Linear(2, 2)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.scale * self.norm(self.conv(images)).amax((2, 3)).double()
        return self.linear(rows) + self.again(rows).square()


SPARE = ("spare.weight", "spare.bias")


def odd() -> Odd:
    torch.manual_seed(0)
    return Odd()


def work_oddly(module: nn.Module, weights: Weights, averager: Averager, optimizer: torch.optim.Optimizer) -> None:
    for step in range(3):
        images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        with weights.whole():
            module(images).square().mean().backward()
            weights.collect()
        weights.clip(0.5)
        optimizer.step()
        optimizer.zero_grad()
        averager.update(step)


def odd_parts(ranks: Ranks, shared: bool, bucket: int = 20) -> tuple[Odd, Weights, Averager, torch.optim.Optimizer]:
    module = odd()
    averager = Averager(module, 0.9)
    names = [name for name, _ in module.named_parameters() if name not in SPARE] if shared else []
    weights, average = (Weights(each, None, ranks, names, bucket) for each in (module, averager.shadow))
    averager.follow(weights, average)
    optimizer = torch.optim.SGD(weights.parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    return module, weights, averager, optimizer


def odd_end(ranks: Ranks, shared: bool, bucket: int = 20) -> dict[str, Any]:
    """Model, average and momentum after three steps on images that every rank has alike."""
    module, weights, averager, optimizer = odd_parts(ranks, shared, bucket)
    work_oddly(module, weights, averager, optimizer)
    momenta = weights.joined(lambda parameter: optimizer.state.get(parameter, {}).get("momentum_buffer"))
    found = {"model": weights.state(), "average": averager.weights.state(), "momentum": momenta}
    weights.give_back()
    layout = module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    tied = module.again.weight is module.linear.weight
    plain = {name: value.detach().clone() for name, value in module.state_dict().items()}
    return {**found, "given back": plain, "layout": layout, "tied": tied}


@pytest.mark.parametrize("bucket", [1, 50, 10**6])
def test_odd_parameters_are_moved_as_in_one_process(bucket: int) -> None:
    alone = odd_end(ALONE, shared=False)
    ends = in_ranks(2, lambda ranks: odd_end(ranks, shared=True, bucket=bucket))
    for kind in ("model", "average"):
        assert ends[1][kind] == {}  # the main process alone writes
    for rank, end in enumerate(ends):
        assert end["layout"]
        assert end["tied"]
        for kind in ("model", "average", "momentum", "given back")[2 * rank :]:
            expected = alone["model" if kind == "given back" else kind]
            assert end[kind].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(end[kind][name], value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ends[0]["momentum"], ends[1]["momentum"], rtol=0, atol=0)
    assert "spare.weight" not in ends[0]["momentum"]  # as in one process: without a gradient nothing moves, or decays


def test_shared_weights_are_of_no_use_outside_and_keep_their_shapes() -> None:
    def work(ranks: Ranks) -> dict[str, Any]:
        module, weights, averager, _ = odd_parts(ranks, shared=True)
        found = {
            "outside": [(tuple(p.shape), bool(p.isnan().all())) for p in module.parameters() if p.dim() != 0],
            "spare": bool(module.spare.weight.isfinite().all()),
        }
        try:
            with weights.whole(), averager.weights.whole():
                found["inside"] = all(bool(p.isfinite().all()) for p in (*module.parameters(), *averager.shadow.parameters()))
                raise ValueError
        except ValueError:
            found["after an error"] = bool(module.conv.weight.isnan().all())
        return found

    for found in in_ranks(2, work):
        shapes = [tuple(p.shape) for p in odd().parameters() if p.dim() != 0]
        assert found["outside"] == [(s, s not in ((2, 2), (2,))) for s in shapes]
        assert found["spare"]
        assert found["inside"]
        assert found["after an error"]


@pytest.mark.parametrize("kept_whole", [(), SPARE])
def test_a_weight_that_only_some_processes_use_gets_the_mean_over_all(kept_whole: tuple[str, ...]) -> None:
    def work(ranks: Ranks) -> dict[str, Tensor]:
        module = odd()
        names = [name for name, _ in module.named_parameters() if name not in kept_whole]
        weights = Weights(module, None, ranks, names, bucket=1)
        with weights.whole():
            loss = module(torch.ones(2, 3, 6, 6)).mean()
            (loss + module.spare.weight.sum() if ranks.rank == 0 else loss).backward()
            weights.collect()
        return weights.joined(lambda parameter: parameter.grad)

    for gradients in in_ranks(2, work):
        assert torch.equal(gradients["spare.weight"], torch.full((2, 2), 0.5))
        assert "spare.bias" not in gradients if kept_whole else torch.equal(gradients["spare.bias"], torch.zeros(2))
        assert float(gradients["linear.bias"].sum()) == pytest.approx(1.0)


def test_clipping_counts_what_every_process_has_whole_once() -> None:
    """As in a branch that only training takes: it is not shared out, and has a gradient all the same."""

    def work(ranks: Ranks) -> float:
        torch.manual_seed(0)
        module = nn.ModuleDict({"shared": nn.Linear(4, 4), "kept": nn.Linear(4, 4)})
        weights = Weights(module, torch.device("cpu"), ranks, ["shared.weight", "shared.bias"])
        with weights.whole():
            (module["shared"](torch.ones(1, 4)).sum() + 3 * module["kept"](torch.ones(1, 4)).sum()).backward()
            weights.collect()
        weights.clip(1.0)
        kept = [module["kept"].weight.grad, module["kept"].bias.grad]
        return float(torch.cat([gradient.flatten() for gradient in kept]).norm())

    # 20 gradients of 1 in the one and of 3 in the other, of norm sqrt(200) together: the latter keep 3 / sqrt(10) of 1.
    assert in_ranks(2, work) == pytest.approx([3 / 10**0.5] * 2, rel=1e-5)


def test_a_momentum_that_only_some_parameters_had_is_taken_over() -> None:
    given = {"conv.weight": torch.ones(5, 3, 3, 3)}

    def work(ranks: Ranks) -> dict[str, Tensor]:
        _, weights, _, optimizer = odd_parts(ranks, shared=True, bucket=10**6)
        weights.set_momenta(optimizer, given)
        return weights.joined(lambda parameter: optimizer.state.get(parameter, {}).get("momentum_buffer"))

    for momenta in in_ranks(2, work):
        assert torch.equal(momenta["conv.weight"], given["conv.weight"])
        assert not momenta["conv.bias"].any()


def held_bytes() -> int:
    """Bytes of all tensors that are alive in this process, but for those that were when gc was last frozen."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


WIDE = 200_000
"""Numbers in the network whose share is weighed; its images and labels are nothing beside it."""


def wide_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, WIDE // 67), nn.ReLU(), nn.Linear(WIDE // 67, 3)))


@pytest.mark.parametrize("size", [2, 3])
def test_between_steps_each_process_keeps_its_part_of_weights_momentum_and_average(
    size: int, fit_plan_in: MakeFit, tmp_path: Path
) -> None:
    def weigh(strategy: Strategy, ranks: Ranks) -> float:
        """Bytes between two steps, in units of the network's own."""
        gc.freeze()
        classifier = wide_classifier().train()
        own = sum(parameter.nbytes for parameter in classifier.parameters())
        seen: list[int] = []
        plan = fit_plan_in(tmp_path, f"{strategy}-{size}", classifier=classifier, strategy=strategy, ranks=ranks)
        # By the third step there is a momentum; `tick` is called on the main process alone.
        fit(replace(plan, tick=lambda step, *_: seen.append(held_bytes()) if step == 3 else None))
        return seen[0] / own if ranks.is_main else 0.0

    found = in_ranks(size, lambda ranks: {strategy: weigh(strategy, ranks) for strategy in ("fsdp", "ddp")})[0]
    # Weights, momentum, average; python does not see what DDP keeps for the gradients.
    assert found["fsdp"] == pytest.approx(3 / size, rel=0.05)
    assert found["ddp"] == pytest.approx(3, rel=0.05)


def norm_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(thin_resnet(3, 1)).train()


def test_a_network_with_batch_norm_trains_as_with_ddp_and_is_watched_alike(fit_plan_in: MakeFit, tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        overfitting.EVERY = 2
        for strategy in ("ddp", "fsdp"):
            attack, settings = AttackOptions(steps=1), {"precision": "32-true", "clip": 0.5}
            plan = fit_plan_in(tmp_path, strategy, settings, classifier=norm_classifier(), attack=attack, strategy=strategy)
            fit(replace(plan, ranks=ranks))
            assert all(bool(value.isfinite().all()) for value in plan.classifier.state_dict().values())  # trained in place

    in_ranks(2, work)
    ddp, fsdp = (RunDirectory(tmp_path / strategy) for strategy in ("ddp", "fsdp"))
    for name, values in read_tensors(ddp.weights("last"))[0].items():
        torch.testing.assert_close(read_tensors(fsdp.weights("last"))[0][name], values, rtol=1e-4, atol=1e-6)
    rows = []
    for run in (ddp, fsdp):
        rows.append([{name: float(cell) for name, cell in row.items()} for row in rows_without_times(run)])
    assert "watched_pgd" in rows[0][0]
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_a_state_is_whole_whatever_wrote_it(fit_plan_in: MakeFit, tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        for strategy in ("ddp", "fsdp"):
            fit(replace(fit_plan_in(tmp_path, strategy, {"precision": "32-true"}), ranks=ranks, strategy=strategy))

    in_ranks(2, work)
    states = [read_tensors(RunDirectory(tmp_path / strategy).states()[-1]) for strategy in ("ddp", "fsdp")]
    shapes = [{name: (value.shape, value.dtype) for name, value in tensors.items()} for tensors, _ in states]
    assert shapes[0] == shapes[1]
    assert any(name.startswith("momentum.") for name in shapes[0])
    module = fit_plan_in(tmp_path, "any").classifier
    progress, momenta = load_state(RunDirectory(tmp_path / "fsdp"), module, Averager(module, 0.9))
    assert isinstance(progress, Progress)
    assert momenta.keys() == dict(module.named_parameters()).keys()
