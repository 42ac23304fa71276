"""Catastrophic overfitting: when it is seen, what a run does about it, and that a resumed run does the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import in_ranks
from training_logs import rows_without_times

from aalp.cli import main
from aalp.errors import InterruptedRunError
from aalp.method.objectives import Standard
from aalp.method.pgd import AttackOptions
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier
from aalp.store.records import read_csv
from aalp.store.run import RunDirectory
from aalp.training import overfitting
from aalp.training import step as step_module
from aalp.training.loop import fit
from aalp.training.plan import Fit
from aalp.training.state import Progress, _progress

MakeFit = Callable[..., Fit]


@pytest.mark.parametrize(
    ("trained", "judged", "images", "overfitted"),
    [
        (0.90, 0.00, 64, True),  # the textbook case
        (0.60, 0.29, 64, True),
        (0.60, 0.31, 64, False),  # more than half
        (0.55, 0.48, 64, False),  # as it goes when all is well
        (0.15, 0.00, 64, False),  # has not learned anything yet
        (0.00, 0.00, 64, False),
        (7 / 8, 0.00, 8, True),
        (3 / 8, 1 / 8, 8, False),  # two images: seen once in 84 looks at a network with 27 % and 25 %
        (6 / 16, 2 / 16, 16, False),
        (11 / 16, 2 / 16, 16, True),
    ],
)
def test_what_counts_as_overfitting(trained: float, judged: float, images: int, overfitted: bool) -> None:
    assert overfitting.is_overfitted(trained, judged, images) is overfitted


@pytest.mark.parametrize(("batch", "images"), [(8, 8), (64, 64), (65, 33), (128, 64), (100, 50), (130, 44)])
def test_a_look_is_at_64_images_at_most(batch: int, images: int) -> None:
    assert overfitting.images_looked_at(batch) == images


@pytest.mark.parametrize(
    ("attack", "watched"),
    [
        (AttackOptions(steps=1), True),
        (AttackOptions(steps=2), True),
        (AttackOptions(steps=3), False),
        (AttackOptions(steps=1, fallback=False), False),
    ],
)
def test_only_attacks_of_few_steps_are_watched(attack: AttackOptions, watched: bool) -> None:
    assert overfitting.is_watched(attack) is watched


def test_what_takes_over_is_pgd_with_the_same_eps() -> None:
    n_fgsm = AttackOptions(steps=1, step_size=1.0, random_start=2.0, project=False, eps_ramp=0.2)
    assert overfitting.after_fallback(n_fgsm, 3) == AttackOptions(steps=3, eps_ramp=0.2)


@pytest.fixture
def overfits_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Looks every 2 steps, and has the look number `number` (from 1) see overfitting; returns where looks were taken."""

    def arrange(number: int) -> list[int]:
        looks: list[int] = []

        def accuracies(step: Any, images: Any, *rest: Any) -> tuple[float, float]:
            looks.append(len(images))
            return (0.9, 0.0) if len(looks) == number else (0.5, 0.4)

        monkeypatch.setattr(overfitting, "EVERY", 2)
        monkeypatch.setattr(overfitting, "accuracies", accuracies)
        return looks

    return arrange


def test_a_run_that_overfits_goes_on_with_more_steps_and_says_so(fit_plan: MakeFit, overfits_at: Any) -> None:
    looks, said = overfits_at(2), []
    plan = fit_plan(attack=AttackOptions(steps=1), warn=said.append)
    progress = fit(plan)
    assert progress.attack_steps == 3
    assert len(looks) == 2  # once it has fallen back, nobody looks any more
    assert said == [
        "catastrophic overfitting at step 4: 90.0% accuracy under the attack of training, 0.0% under PGD-5; "
        "the attack takes 3 steps from here on"
    ]
    rows = read_csv(plan.run.metrics)
    assert [float(row["attack_steps"]) for row in rows] == [1.0, 3.0]
    assert [row["watched_pgd"] for row in rows] == ["0.2", ""]
    assert [row["watched_training_attack"] for row in rows] == ["0.7", ""]


def test_an_attack_that_grows_has_no_fewer_steps_for_having_fallen_back(fit_plan: MakeFit, overfits_at: Any) -> None:
    overfits_at(1)
    plan = fit_plan(attack=AttackOptions(steps=8, first_steps=1), warn=lambda line: None)
    assert fit(plan).attack_steps == 6
    # Grown by one a step it would be 1, 2, 3, 4 and 5, 6, 7, 8; from the third on it has at least three times 2.
    rows = read_csv(plan.run.metrics)
    assert [float(row["attack_steps"]) for row in rows] == [(1 + 2 + 6 + 6) / 4, (6 + 6 + 7 + 8) / 4]


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_that_fell_back_resumes_exactly(stop: int, fit_plan: MakeFit, overfits_at: Any) -> None:
    def make(name: str, **changes: Any) -> Fit:
        return fit_plan(name, attack=AttackOptions(steps=1), warn=lambda line: None, **changes)

    overfits_at(1)
    undisturbed = make("undisturbed")
    fit(undisturbed)
    overfits_at(1)
    stopped = make("stopped", tick=lambda at, total, loss: signal.raise_signal(signal.SIGTERM) if at == stop else None)
    with pytest.raises(InterruptedRunError):
        fit(stopped)
    overfits_at(0)  # the network has recovered, and the run must still know
    assert fit(make("stopped"), resume=True).attack_steps == 3
    for which in ("last", "best"):
        assert undisturbed.run.weights(which).read_bytes() == stopped.run.weights(which).read_bytes()
    assert rows_without_times(undisturbed.run) == rows_without_times(stopped.run)


def test_states_of_before_there_was_a_fallback_are_read() -> None:
    old = {"step": 3, "best_robust": 0.5, "best_clean": 0.5, "best_epoch": 1, "sums": {}, "seconds": 1.0, "epoch_seconds": 0.0}
    assert _progress(old) == Progress(3, 0.5, 0.5, 1, {}, 1.0, 0.0, 0)


def test_training_without_an_adversary_has_no_attack_to_watch(fit_plan: MakeFit, overfits_at: Any) -> None:
    looks = overfits_at(1)
    plan = fit_plan(objective=Standard(), attack=AttackOptions(steps=1))
    fit(plan)
    assert looks == []
    assert "attack_steps" not in read_csv(plan.run.metrics)[0]


def test_the_look_sees_what_the_two_attacks_do(
    fit_plan: MakeFit, small_classifier: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real look: at the first images only, a weak attack beside the judge, in evaluation mode and back."""
    seen: list[tuple[float, float]] = []
    looks = overfitting.accuracies

    def look(step: Any, *rest: Any) -> tuple[float, float]:
        seen.append(looks(step, *rest))
        assert all(module.training for module in step.classifier.modules())
        return seen[-1]

    monkeypatch.setattr(overfitting, "EVERY", 4)
    monkeypatch.setattr(overfitting, "IMAGES", 8)
    monkeypatch.setattr(overfitting, "accuracies", look)
    # A step of next to nothing from the clean image is an attack that everything withstands.
    weak = AttackOptions(steps=1, step_size=1e-6, random_start=0.0)
    classifier = small_classifier(3, mean=[0.3], std=[0.3]).train()
    options = {"epochs": 8, "lr": 0.1, "validation_steps": 1}
    fit(fit_plan(options=options, classifier=classifier, attack=weak, threat=Linf(0.4), warn=lambda line: None))
    assert len(seen) >= 5
    assert all(trained * 8 == int(trained * 8) and judged <= trained for trained, judged in seen)
    assert any(judged < trained for trained, judged in seen)


def test_two_processes_look_at_the_images_that_one_does(fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfitting, "EVERY", 1)
    monkeypatch.setattr(overfitting, "IMAGES", 7)  # every third of 15, three in one rank's rows and two in the other's

    def plan(name: str) -> Fit:
        options = {"batch_size": 15, "precision": "32-true", "epochs": 1}
        return fit_plan(name, options=options, attack=AttackOptions(steps=1), threat=Linf(0.1), warn=lambda line: None)

    fit(plan("one"))
    in_ranks(2, lambda ranks: fit(replace(plan("two"), ranks=ranks)).step)
    one, two = read_csv(plan("one").run.metrics), read_csv(plan("two").run.metrics)
    looks = [float(row[name]) for row in one for name in ("watched_training_attack", "watched_pgd")]
    assert min(looks) > 0.0
    assert looks == [float(row[name]) for row in two for name in ("watched_training_attack", "watched_pgd")]


@pytest.mark.parametrize(
    ("options", "progress", "steps"),
    [
        ({"steps": 3, "first_steps": 1}, 0.0, 1),
        ({"steps": 3, "first_steps": 1}, 0.33, 1),
        ({"steps": 3, "first_steps": 1}, 1 / 3, 2),
        ({"steps": 3, "first_steps": 1}, 0.67, 3),
        ({"steps": 3, "first_steps": 1}, 1.0, 3),
        ({"steps": 7, "first_steps": 7}, 0.5, 7),
        ({"steps": 7}, 0.1, 7),
    ],
)
def test_steps_grow_evenly(options: dict[str, Any], progress: float, steps: int) -> None:
    assert AttackOptions(**options).at(progress).steps == steps


def test_eps_grows_to_that_of_the_threat() -> None:
    attack = AttackOptions(eps_ramp=0.4)
    assert [attack.eps_share(progress) for progress in (0.0, 0.1, 0.2, 0.4, 1.0)] == pytest.approx([0.01, 0.25, 0.5, 1, 1])
    assert AttackOptions().eps_share(0.0) == 1.0


def test_the_ball_of_training_grows_as_it_is_told_to(fit_plan: MakeFit, monkeypatch: pytest.MonkeyPatch) -> None:
    radii: list[float] = []
    real = step_module.perturb

    def perturb(classifier: Any, images: Any, labels: Any, threat: Any, steps: int, *rest: Any, **named: Any) -> Any:
        adversarial = real(classifier, images, labels, threat, steps, *rest, **named)
        radii.append(float((adversarial - images).abs().max()))
        return adversarial

    monkeypatch.setattr(step_module, "perturb", perturb)
    fit(fit_plan(attack=AttackOptions(steps=3, first_steps=1, eps_ramp=0.5)))
    expected = [0.1 * share for share in (0.01, 0.25, 0.5, 0.75, 1, 1, 1, 1)]
    torch.testing.assert_close(torch.tensor(radii), torch.tensor(expected), rtol=0.02, atol=1e-4)


def test_a_real_run_on_one_step_of_fgsm_is_rescued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FGSM without a random start, its eps growing until one step no longer finds what PGD finds."""
    monkeypatch.setattr(overfitting, "EVERY", 10)
    words = ["train", "--config", "digits", "--objective", "at", "--quiet", "--run", str(tmp_path / "run")]
    words += ["--attack.steps", "1", "--attack.random_start", "0", "--attack.eps_ramp", "1", "--threat.eps", "0.6"]
    words += ["--training.epochs", "8", "--training.batch_size", "32", "--training.warmup", "0.1", "--training.ema", "0.9"]
    assert main([*words, "--training.validation_steps", "1", "--data_options.validation", "60"]) == 0
    assert "catastrophic overfitting at step" in capsys.readouterr().err
    steps = [float(row["attack_steps"]) for row in read_csv(RunDirectory(tmp_path / "run").metrics)]
    assert (steps[0], steps[-1]) == (1.0, 3.0)
