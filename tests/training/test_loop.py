from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from aalp.data.augment import Augmentation
from aalp.errors import DataError, InterruptedRunError, OptionError
from aalp.method.aalp import AALP
from aalp.method.guided_dropout import GuidedDropout
from aalp.method.objectives import AT, OBJECTIVES, Standard
from aalp.method.threat import L2
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.store.checkpoint import read_tensors
from aalp.store.records import read_csv
from aalp.training import loop, validation
from aalp.training.loop import fit
from aalp.training.options import TrainingOptions
from aalp.training.plan import Fit

MakeFit = Callable[..., Fit]


def final(plan: Fit) -> dict[str, Tensor]:
    """The trained weights themselves (not their average)."""
    return {name: value.clone() for name, value in plan.classifier.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_trains_an_epoch_and_logs_its_terms(name: str, fit_plan: MakeFit) -> None:
    objective = OBJECTIVES[name][0]()
    plan = fit_plan(objective=objective, options={"epochs": 1})
    before = final(plan)
    progress = fit(plan)
    assert progress.step == 4
    assert not same(before, final(plan))
    assert all(bool(torch.isfinite(value).all()) for value in final(plan).values())
    (row,) = read_csv(plan.run.metrics)
    terms = {"standard": set(), "at": set(), "trades": {"divergence"}, "mart": {"divergence"}}.get(name, {"pairing"})
    assert terms < set(row)
    assert all(float(value) == float(value) for value in row.values())


def test_a_training_learns_the_tiny_images(fit_plan: MakeFit, small_classifier: Callable[..., Classifier]) -> None:
    classifier = small_classifier(3, mean=[0.3], std=[0.3]).train()
    plan = fit_plan(objective=Standard(), options={"epochs": 12, "lr": 0.1}, classifier=classifier)
    progress = fit(plan)
    rows = read_csv(plan.run.metrics)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 2
    assert float(rows[-1]["validation_clean"]) > 0.9
    assert progress.best_clean == max(
        float(row["validation_clean"]) for row in rows if float(row["validation_robust"]) == progress.best_robust
    )


def test_what_a_run_leaves_behind(fit_plan: MakeFit) -> None:
    rows: list[dict[str, Any]] = []
    ticks: list[tuple[int, int]] = []
    plan = fit_plan(options={"epochs": 3}, report=rows.append, tick=lambda step, total, loss: ticks.append((step, total)))
    fit(plan)
    assert ticks == [(step, 12) for step in range(1, 13)]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    written = read_csv(plan.run.metrics)
    assert [{name: str(value) for name, value in row.items()} for row in rows] == written
    assert plan.run.states() == [plan.run.state(8), plan.run.state(12)]
    last, about = read_tensors(plan.run.weights("last"))
    assert about["epoch"] == 3
    assert about["kind"] == "weights"
    assert about["model"] == "small-cnn"
    # What is exported is the average, not the weights.
    assert last.keys() == final(plan).keys()
    assert not same(last, final(plan))
    best = max(written, key=lambda row: (float(row["validation_robust"]), float(row["validation_clean"]), int(row["epoch"])))
    assert read_tensors(plan.run.weights("best"))[1]["epoch"] == int(best["epoch"])


@pytest.mark.parametrize(("objective", "best"), [(Standard(), 2), (AT(), 1)])
def test_training_without_an_adversary_is_judged_on_clean_images(
    objective: Any, best: int, fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (clean, robust) after each epoch, as ordinary training goes: it withstands most before it has learned anything.
    figures = iter([(0.2, 0.2), (0.9, 0.1), (0.8, 0.0)])
    monkeypatch.setattr(loop, "accuracies", lambda *_: next(figures))
    plan = fit_plan(objective=objective, options={"epochs": 3})
    fit(plan)
    assert read_tensors(plan.run.weights("best"))[1]["epoch"] == best


def test_the_learning_rate_of_each_epoch_is_that_of_the_schedule(fit_plan: MakeFit) -> None:
    step = fit_plan("step", {"epochs": 4, "schedule": "step", "milestones": (0.5, 0.75), "lr": 0.08})
    fit(step)
    assert [float(row["lr"]) for row in read_csv(step.run.metrics)] == pytest.approx([0.08, 0.08, 0.008, 0.0008])
    cycle = fit_plan("cycle", {"epochs": 2, "warmup": 0.5, "lr": 0.08})
    fit(cycle)
    # The last steps of the epochs are numbers 3 and 7 of 8: 3/8 of a rise over 4/8, and 1/8 before the end of a fall.
    assert [float(row["lr"]) for row in read_csv(cycle.run.metrics)] == pytest.approx([0.08 * 3 / 4, 0.08 * 1 / 4])


def test_the_same_plan_gives_the_same_weights_and_another_seed_does_not(fit_plan: MakeFit) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name + str(seed)) * 17 + seed)  # the global state has no say
        torch.rand(seed + 3)
        plan = fit_plan(name, seed=seed, objective=AALP(dropout=GuidedDropout(ramp=0.0)))
        fit(plan)
        weights.append(plan.run.weights("last").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize(
    "options",
    [
        {"augment": "crop"},
        {"augment": "flip"},
        {"clip": 0.01},
        {"awp": 0.05, "awp_start": 0.0},
        {"weight_decay": 0.5},
        {"schedule": "step"},
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_option_of_training_has_an_effect(precision: str, options: dict[str, Any], fit_plan: MakeFit) -> None:
    weights = []
    for name, changes in (("plain", {}), ("changed", options)):
        plan = fit_plan(name, {"epochs": 1, "precision": precision, **changes})
        fit(plan)
        weights.append(final(plan))
    assert not same(*weights)
    assert all(bool(torch.isfinite(value).all()) for value in weights[1].values())


class Listening(nn.Sequential):
    """A network that keeps the seeds of the generator from which it would draw; its copies share the list."""

    seeds: ClassVar[set[int]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seeds.add(torch.initial_seed())
        logits: Tensor = super().forward(images)
        return logits


def test_a_network_s_own_random_numbers_are_not_those_of_augmentation_and_attack(
    fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image whose flip and whose dropped path are decided by the same number has both or neither."""
    ours: set[int] = set()
    augment, perturb = loop.augment, validation.perturb

    def augmented(images: Tensor, kind: Augmentation, generator: torch.Generator, *rest: Any) -> Tensor:
        ours.add(generator.initial_seed())
        return augment(images, kind, generator, *rest)

    def perturbed(*arguments: Any, generator: torch.Generator, **options: Any) -> Tensor:
        ours.add(generator.initial_seed())
        return perturb(*arguments, generator=generator, **options)

    monkeypatch.setattr(loop, "augment", augmented)
    monkeypatch.setattr(validation, "perturb", perturbed)
    plan = fit_plan(classifier=Classifier(Listening(nn.Flatten(), nn.Linear(64, 3))))
    Listening.seeds.clear()
    fit(plan)
    assert len(ours) == len(Listening.seeds) == 8 + 1  # of the steps, and of the one batch of validation
    assert not Listening.seeds & ours


def test_weight_perturbation_begins_where_it_is_told_to(fit_plan: MakeFit) -> None:
    """Two epochs, perturbed from the second on: nothing differs until then."""
    after: dict[str, list[dict[str, Tensor]]] = {"off": [], "late": []}
    for name, awp in (("off", 0.0), ("late", 0.05)):
        plan = fit_plan(name, {"awp": awp, "awp_start": 0.5})
        seen = after[name]
        fit(Fit(**{**vars(plan), "tick": lambda step, total, loss, seen=seen, plan=plan: seen.append(final(plan))}))
    equal = [same(one, other) for one, other in zip(after["off"], after["late"], strict=True)]
    assert equal == [True] * 4 + [False] * 4


def test_under_weight_perturbation_each_batch_counts_once_in_the_statistics(fit_plan: MakeFit) -> None:
    counted = []
    for name, awp in (("off", 0.0), ("on", 0.05)):
        plan = fit_plan(name, {"epochs": 1, "awp": awp, "awp_start": 0.0}, classifier=Classifier(thin_resnet(3, 1)))
        fit(plan)
        counted.append(int(plan.classifier.network.norm.num_batches_tracked))
    assert counted[0] == counted[1] > 0


def test_weight_perturbation_leaves_frozen_weights_alone(
    fit_plan: MakeFit, small_classifier: Callable[..., Classifier]
) -> None:
    ends = []
    for name, awp in (("off", 0.0), ("on", 0.05)):
        classifier = small_classifier(3).train()
        frozen = classifier.network.hidden[0].weight.requires_grad_(False)
        before = frozen.clone()
        plan = fit_plan(name, {"epochs": 1, "awp": awp, "awp_start": 0.0}, classifier=classifier)
        fit(plan)
        assert torch.equal(frozen, before)
        ends.append(final(plan))
    assert not same(*ends)


def test_attacking_through_the_mask_changes_the_training_and_not_the_evaluation_mode(fit_plan: MakeFit) -> None:
    weights = []
    for name, attack in (("around", False), ("through", True)):
        plan = fit_plan(name, {"epochs": 1}, objective=AALP(dropout=GuidedDropout(ramp=0.0, attack=attack)))
        fit(plan)
        weights.append(final(plan))
        assert all(module.training for module in plan.classifier.modules())
    assert not same(*weights)


@pytest.mark.parametrize("kind", ["none", "crop+flip"])
def test_a_network_with_batch_norm_and_the_l2_ball_train_as_well(kind: Augmentation, fit_plan: MakeFit) -> None:
    torch.manual_seed(0)
    plan = fit_plan(options={"epochs": 1, "augment": kind}, classifier=Classifier(thin_resnet(3, 1)), threat=L2(0.5))
    fit(plan)
    statistics = {name: value for name, value in final(plan).items() if name.endswith("num_batches_tracked")}
    # One forward pass a step moves BatchNorm's statistics; attacks and validation must not.
    assert {int(value) for value in statistics.values()} == {4}


def test_an_incomplete_last_batch_is_left_out(fit_plan: MakeFit) -> None:
    ticks: list[int] = []
    fit(fit_plan(options={"batch_size": 30}, tick=lambda step, total, loss: ticks.append(total)))
    assert ticks == [4] * 4  # 72 images are two batches of 30, twice


def test_a_batch_larger_than_the_data_is_refused(fit_plan: MakeFit) -> None:
    with pytest.raises(DataError, match=r"72 images, fewer than one batch of 73: give a smaller --training.batch_size"):
        fit(fit_plan(options={"batch_size": 73}))


def test_training_without_validation_images_keeps_the_last_weights_as_best(fit_plan: MakeFit) -> None:
    plan = fit_plan()
    nothing = plan.validation.subset(torch.empty(0, dtype=torch.int64))
    fit(Fit(**{**vars(plan), "validation": nothing}))
    assert plan.run.weights("best").read_bytes() == plan.run.weights("last").read_bytes()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_stops_the_run_in_whichever_epoch_it_comes(epoch: int, fit_plan: MakeFit) -> None:
    def press(row: Mapping[str, Any]) -> None:
        if row["epoch"] == epoch:
            signal.raise_signal(signal.SIGTERM)

    plan = fit_plan(report=press)
    with pytest.raises(InterruptedRunError) as caught:
        fit(plan)
    assert caught.value.exit_code == 143
    assert len(read_csv(plan.run.metrics)) == epoch
    assert fit(replace(plan, report=lambda row: None), resume=True).step == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"validation_steps": 0}, "validation_steps is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"clip": -1.0}, "clip is -1"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
        ({"awp": float("inf")}, "awp is inf"),
        ({"warmup": 1.1}, "warmup is 1.1"),
        ({"awp_start": -0.1}, "awp_start is -0.1"),
        ({"ema": 1.0}, "ema is 1"),
        ({"ema": -0.1}, "ema is -0.1"),
        ({"milestones": (0.75, 0.5)}, r"milestones is \[0.75, 0.5\]"),
        ({"milestones": (0.0, 0.5)}, r"milestones is \[0.0, 0.5\]"),
    ],
)
def test_training_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"training {message}"):
        TrainingOptions(**options)
