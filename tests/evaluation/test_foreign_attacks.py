"""Attacks of others are called as they want, and judged as ours are."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks import evasion
from torch import Tensor, nn

from aalp.cli import main
from aalp.errors import AalpError, OptionError
from aalp.evaluation import foreign_attacks
from aalp.evaluation.attacks import attack_by_function, attack_by_name, run_attack
from aalp.evaluation.foreign_attacks import leaving
from aalp.evaluation.robustness import evaluate
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier
from aalp.store.records import read_record

Batch = tuple[Classifier, Tensor, Tensor]


@pytest.fixture
def batch(small_classifier: Callable[..., Classifier]) -> Batch:
    """Six images with the labels that the classifier gives them."""
    classifier = small_classifier()
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return classifier, images, classifier(images).argmax(1).detach()


def moved(share: float) -> Callable[..., Tensor]:
    """Moves every pixel towards 1/2 by a share of eps, or of 1 if it is not told eps."""

    def attack(model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        return images + share * threat.eps * (0.5 - images).sign()

    return attack


def test_an_own_function_is_given_images_labels_and_the_ball_and_may_take_gradients(batch: Batch) -> None:
    classifier, images, labels = batch
    seen: dict[str, Any] = {}

    def attack(model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        seen.update(model=model, labels=labels.clone(), threat=threat)
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(images), labels), images)
        return images + threat.eps * gradient.sign()

    result = evaluate(classifier, images, labels, Linf(0.2), attacks=[attack, "fgsm"])
    assert seen["model"] is classifier
    assert torch.equal(seen["labels"], labels)
    assert seen["threat"] == Linf(0.2)
    assert result.results[0].name.startswith("test_foreign_attacks:")
    # It leaves [0, 1] where FGSM, which is the same step, is cut to it.
    assert result.results[0].outside > 0
    assert result.results[0].accuracy >= result.results[1].accuracy


def test_one_function_needs_no_list(batch: Batch) -> None:
    result = evaluate(*batch, Linf(0.1), attacks=moved(0.5))
    assert [attack.name for attack in result.results] == ["test_foreign_attacks:moved.<locals>.attack"]


class Jumpy(nn.Module):
    """Right on every image in evaluation mode, wrong on every one in training mode, with statistics that a pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 2)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = torch.tensor([1.0, -1.0])

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(images.flatten(1))
        return self.head(features) if not self.training else self.head(features) * -1


@pytest.mark.parametrize("raises", [False, True])
def test_an_attack_that_treats_the_model_as_a_training_does_leaves_nothing_on_it(raises: bool) -> None:
    classifier = Classifier(Jumpy()).train()
    classifier.network.norm.eval()
    classifier.network.head.bias.grad = torch.ones(2)
    grad, before = classifier.network.head.bias.grad, {name: value.clone() for name, value in classifier.state_dict().items()}

    def attack(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        model.eval()
        torch.nn.functional.cross_entropy(model(images.requires_grad_()), labels).backward()
        model.train()
        model(images)
        model.requires_grad_(False)
        if raises:
            raise ValueError("no")
        return images.detach()

    def run() -> None:
        images, labels = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        # Two batches: the second would start from what the first one left.
        assert evaluate(classifier, images, labels, Linf(0.1), attacks=attack, batch_size=2).robust_accuracy == 1.0

    if raises:
        with pytest.raises(OptionError, match="ValueError: no"):
            run()
    else:
        run()
    assert [module.training for module in classifier.modules()] == [True, True, False, True]
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert classifier.network.head.bias.grad is grad
    assert grad.tolist() == [1.0, 1.0]
    assert classifier.network.head.weight.grad is None
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=["linf", "l2"])
def test_what_leaves_the_ball_counts_as_failed_and_is_counted_what_rounds_is_projected(batch: Batch, threat: Threat) -> None:
    classifier, images, labels = batch
    # A model that is wrong on every image but the clean ones.
    direction = threat.steepest_step(torch.ones_like(images) * (0.5 - images).sign())
    shares = torch.tensor([0.5, 1.0, 1.0005, 1.002, 2.0, 1.0]).view(-1, 1, 1, 1)
    candidates = images + shares * threat.eps * direction
    candidates[5, 0, 0, 0] = float("nan")
    assert leaving(candidates, images, threat).tolist() == [False, False, False, True, True, True]
    outside: list[Tensor] = []
    attack = attack_by_function(lambda model, images, labels: candidates)
    adversarial, _ = run_attack(attack, classifier, images, labels, threat, 0, outside.append)
    assert outside[0].tolist() == [False, False, False, True, True, True]
    assert torch.equal(adversarial[3:], images[3:])
    assert bool(threat.contains(adversarial, images).all())
    assert not torch.equal(adversarial[0], images[0])


def test_a_step_out_of_the_range_is_outside_too() -> None:
    images = torch.tensor([0.99, 0.5, 0.01]).view(3, 1, 1, 1)
    candidates = images + torch.tensor([0.05, 0.05, -0.05]).view(3, 1, 1, 1)
    assert leaving(candidates, images, Linf(0.1)).tolist() == [True, False, True]


def test_an_attack_depends_on_its_seed_alone_and_leaves_the_generators_as_they_were(batch: Batch) -> None:
    def noise(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        images += 0.05 * torch.rand_like(images) + 0.001 * random.random() + 0.001 * np.random.rand()  # in place
        return images.clamp(0, 1)

    classifier, images, labels = batch
    attack, before = attack_by_function(noise), images.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = [run_attack(attack, classifier, images, labels, Linf(0.1), seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda images: images[:1], r"returned torch.float32 \(1, 1, 8, 8\): it has to return float images \(6, 1, 8, 8\)"),
        (lambda images: (images * 255).byte(), "returned torch.uint8"),
        (lambda images: images.numpy(), "returned a ndarray"),
        (lambda images: images.no_such_thing, "failed: AttributeError"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(batch: Batch, result: Callable[[Tensor], Any], message: str) -> None:
    attack = attack_by_function(lambda model, images, labels: result(images))
    with pytest.raises(OptionError, match=message):
        run_attack(attack, *batch, Linf(0.1), 0)


@pytest.mark.parametrize(
    ("name", "threat"),
    [
        ("foolbox:LinfDeepFoolAttack", Linf(0.2)),
        ("foolbox:LinfPGD", Linf(0.2)),
        ("foolbox:L2PGD", L2(1.0)),
        ("art:FastGradientMethod", Linf(0.2)),
        ("art:ProjectedGradientDescent", L2(1.0)),
    ],
)
def test_attacks_of_libraries_fool_within_our_ball(name: str, threat: Threat, batch: Batch) -> None:
    # Bright against dark: 0.2 on each of 64 pixels, or a distance of 1, moves the sum further than these images are from 32.
    linear = nn.Linear(64, 2)
    linear.weight.data = torch.stack([torch.ones(64), -torch.ones(64)])
    linear.bias.data = torch.tensor([-32.0, 32.0])
    classifier, (_, images, _) = Classifier(nn.Sequential(nn.Flatten(), linear)).eval(), batch
    labels = classifier(images).argmax(1).detach()
    assert len(labels.unique()) == 2
    outside: list[Tensor] = []
    attack = attack_by_name(name)
    adversarial, fooled = run_attack(attack, classifier, images, labels, threat, 0, outside.append)
    assert int(outside[0].sum()) == 0
    assert bool(threat.contains(adversarial, images).all())
    assert torch.equal(fooled, classifier(adversarial).argmax(1) != labels)
    assert bool(fooled.all())
    assert attack.settings["package"] in ("foolbox", "adversarial-robustness-toolbox")
    assert attack.settings["version"]


@pytest.mark.parametrize(
    ("name", "limits"),
    [("BoundaryAttack", {"max_iter": 30}), ("HopSkipJump", {"max_iter": 2, "init_eval": 9}), ("SaliencyMapMethod", {})],
)
def test_art_attacks_that_aim_or_use_float64_work(name: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = getattr(evasion, name).__init__

    @functools.wraps(whole)  # its signature tells which settings it takes
    def shortened(self: object, *given: object, **settings: object) -> None:
        whole(self, *given, **settings, **limits)

    monkeypatch.setattr(getattr(evasion, name), "__init__", shortened)
    torch.manual_seed(0)
    model, images = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), mean=[0.5], std=[0.2]), torch.rand(4, 1, 8, 8)
    _, fooled = run_attack(attack_by_name(f"art:{name}"), model.eval(), images, model(images).argmax(1), L2(8.0), 0)
    assert int(fooled.sum()) > 0


def test_an_attack_of_another_norm_is_refused(batch: Batch) -> None:
    with pytest.raises(OptionError, match=r"'L2PGD' is of the norm .*, the threat of Linf: choose one that fits"):
        run_attack(attack_by_name("foolbox:L2PGD"), *batch, Linf(0.2), 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foolbox:LinfPDG", "did you mean 'LinfPGD'"),
        ("art:FastGradientMetod", "did you mean 'FastGradientMethod'"),
        ("no_such_package:attack", "name it as package.module:function, importable from here"),
        ("aalp.errors:nothing", "has no attribute 'nothing'"),
        ("aalp.errors:OptionError", "is a type: a function"),
        ("foolbox:Attack", "unknown foolbox attack"),
    ],
)
def test_names_that_nobody_has_are_told(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        attack_by_name(name)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_attacks, "find_spec", lambda name: None)
    with pytest.raises(AalpError, match=r'pip install "aalp\[art\]"'):
        attack_by_name("art:DeepFool")


OWN = """
import pathlib
pathlib.Path("imported").touch()

def far(model, images, labels):
    return images + 0.6

def near(model, images, labels, threat):
    return (images + 0.5 * threat.eps).clamp(0, 1)
"""


def test_on_the_command_line_with_what_left_the_ball_told(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_attacks.py").write_text(OWN)
    words = ["evaluate", str(copied_run), "--quiet", "--batch_size", "4"]
    assert main([*words, "--attacks", "own_attacks:near,own_attacks:far"]) == 0
    record = read_record(copied_run / "evaluations" / "best-001.json", "evaluation")
    near, far = record["attacks"]
    assert (near["name"], near["settings"]["function"], len(near["settings"]["sha256"])) == (*["own_attacks:near"] * 2, 64)
    assert "outside" not in near
    assert far["outside"] == far["attacked"] > 4  # summed over batches
    assert far["accuracy"] == record["clean"]
    assert (
        f"'own_attacks:far' left the ball or [0, 1] on {far['attacked']} of {far['attacked']} images" in capfd.readouterr().err
    )


@pytest.mark.parametrize("words", [["evaluate", "RUN"], ["train", "--resume", "RUN"]])
def test_a_run_directory_does_not_get_its_attack_code_run_without_a_word(
    words: list[str], copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("strange_attacks.py").write_text(OWN)
    sys.modules.pop("strange_attacks", None)
    config = copied_run / "config.yaml"
    changed = config.read_text().replace("attacks: fgsm,pgd-20,cw-40,autoattack", "attacks: strange_attacks:near")
    assert "strange_attacks" in changed
    config.write_text(changed)
    words = [word.replace("RUN", str(copied_run)) for word in words]
    assert main([*words, "--quiet"]) == 2
    assert "asks to run the code 'strange_attacks:near': if you trust who made it" in capfd.readouterr().err
    assert not Path("imported").exists()
    assert main([*words, "--quiet", "--trust-model-code"]) == 0
    assert Path("imported").exists()
