"""Nothing is left on the CPU when the network is not there: the whole of the package on a second, pretended device.

tests/gpu/ has what only a real one can show.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from other_device import other_device

import aalp
from aalp.cli import main
from aalp.commands.loading import load
from aalp.data.sources import DataOptions, open_source
from aalp.data.split import as_float
from aalp.evaluation import apgd, autoattack, fab, views
from aalp.evaluation.autoattack import STANDARD, autoattack_part
from aalp.evaluation.bench import Effort
from aalp.method.objectives import OBJECTIVES
from aalp.method.pgd import AttackOptions
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.store.checkpoint import read_tensors
from aalp.training import loop
from aalp.training.loop import fit
from aalp.training.plan import Fit

WHERE_AND_WHEN = ("command", "created", "hardware", "path", "run", "seconds", "weights")
"""What differs between records of the same figures."""
WITH_DEVICE = ("audit", "dry_run", "evaluate", "resuming", "run_analysis")
"""The rooms of the commands that ask for the device."""


@pytest.fixture
def elsewhere() -> Iterator[torch.device]:
    with other_device() as device:
        yield device


@pytest.fixture
def training_elsewhere(elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Training goes where Fabric says: it is told of the pretended device, which it cannot find by itself."""
    make = loop.make_fabric

    def make_elsewhere(*arguments: Any) -> Any:
        fabric: Any = make(*arguments)
        fabric._strategy._root_device = elsewhere
        fabric._accelerator.setup_device = lambda device: None
        return fabric

    monkeypatch.setattr(loop, "make_fabric", make_elsewhere)
    return elsewhere


@pytest.fixture
def commands_elsewhere(elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    for room in WITH_DEVICE:
        monkeypatch.setattr(importlib.import_module(f"aalp.commands.{room}"), "device", lambda: elsewhere)
    return elsewhere


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits that is right often enough for an audit to decide; not to be written to."""
    run = tmp_path_factory.mktemp("elsewhere") / "run"
    words = ["--config", "digits", "--training.epochs", "8", "--attack.steps", "3", "--training.validation_steps", "1"]
    assert main(["train", *words, "--run", str(run), "--quiet"]) == 0
    return run


def test_the_pretended_device_does_not_mix_with_the_cpu(elsewhere: torch.device) -> None:
    there, here = torch.rand(3, 2, device=elsewhere), torch.rand(3, 2)
    assert (there + 1).device == elsewhere
    assert there.cpu().device == torch.device("cpu")
    assert torch.equal(here.to(elsewhere).cpu(), here)
    assert there[torch.tensor([0, 2])].shape == (2, 2)  # as on a GPU
    mistakes: list[Callable[[], Any]] = [
        lambda: there + here,
        lambda: here[there[:, 0] > 2],
        lambda: there.masked_fill(here > 2, 0.0),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: there.index_put_((torch.tensor([0]),), here[0]),
        lambda: torch.nn.Linear(2, 2)(there),
        lambda: torch.rand(2, device=elsewhere, generator=torch.Generator()),
        lambda: torch.rand(2, generator=torch.Generator(elsewhere)),
        lambda: there.numpy(),
    ]
    for mistake in mistakes:
        with pytest.raises((RuntimeError, TypeError), match=r"device"):
            mistake()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_trains_there_as_on_the_cpu(
    name: str, fit_plan: Callable[..., Fit], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With everything that a step can have: a growing attack, weight perturbation, clipping, augmentation, a resume."""

    def plan(run: str, epochs: int = 2) -> Fit:
        options = {
            "epochs": epochs,
            "precision": "32-true",
            "augment": "crop+flip",
            "clip": 1.0,
            "awp": 0.005,
            "awp_start": 0.0,
        }
        # One step is watched for catastrophic overfitting.
        attack = AttackOptions(steps=1 if name == "at" else 2, first_steps=1 if name == "aalp" else None, eps_ramp=0.5)
        changes: dict[str, Any] = {}
        if name == "trades":  # BatchNorm, which the attack folds away
            torch.manual_seed(0)
            changes["classifier"] = Classifier(thin_resnet(3, 1)).train()
        return fit_plan(run, options, objective=OBJECTIVES[name][0](), attack=attack, **changes)

    monkeypatch.setattr("aalp.training.overfitting.EVERY", 2)
    here = plan("here")
    fit(here)
    elsewhere = request.getfixturevalue("training_elsewhere")
    there = plan("there")
    fit(there)
    assert {parameter.device for parameter in there.classifier.parameters()} == {elsewhere}
    tensors = [read_tensors(run.run.weights("last"))[0] for run in (here, there)]
    assert tensors[0].keys() == tensors[1].keys()
    for key, expected in tensors[0].items():
        torch.testing.assert_close(tensors[1][key], expected, rtol=0, atol=0)
    assert fit(dataclasses.replace(plan("there", epochs=3)), resume=True).step == 12


@pytest.mark.parametrize("threat", [Linf(0.2), L2(1.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("part", STANDARD)
def test_every_part_of_autoattack_finds_the_same_images_there(
    part: str, threat: Threat, digits_run: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(apgd, "STEPS", 10)
    monkeypatch.setattr(fab, "STEPS", 3)
    # As many images as are asked at once everywhere, which on a GPU are more.
    monkeypatch.setattr(autoattack, "CAPACITY", 8)
    classifier, (images, labels) = load(digits_run, "last").eval(), digits(8)
    attack = autoattack_part(part, queries=40)
    here = attack(classifier, images, labels, threat, 0)
    elsewhere = request.getfixturevalue("elsewhere")
    there = attack(classifier.to(elsewhere), images.to(elsewhere), labels.to(elsewhere), threat, 0)
    assert there.device == elsewhere
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("verb", "words"),
    [("evaluate", ["--attacks", "fgsm,pgd-4,cw-4"]), ("analyze", ["--images", "60"])],
)
def test_every_verb_comes_to_the_same_there_as_on_the_cpu(
    verb: str,
    words: list[str],
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(views, "multiplies_bfloat16", lambda device: False)  # there is no autocast elsewhere
    runs = [Path(shutil.copytree(digits_run, tmp_path / name / "run")) for name in ("here", "there")]
    codes = [main([verb, str(runs[0]), *words, "--quiet"])]
    request.getfixturevalue("commands_elsewhere")
    codes.append(main([verb, str(runs[1]), *words, "--quiet"]))
    assert codes == [0, 0]
    here, there = (figures(run) for run in runs)
    assert here == there
    assert here


def test_every_gate_of_an_audit_sees_the_same_there(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(views, "multiplies_bfloat16", lambda device: False)
    effort = Effort(steps=5, restarts=2, restart_steps=3, adaptive_steps=5, noises=10, queries=40, stand_in_steps=10)
    classifier, (images, labels) = load(digits_run, "last"), digits(40)
    here = aalp.audit(classifier, images, labels, aalp.Linf(0.2), effort=effort)
    elsewhere = request.getfixturevalue("elsewhere")
    there = aalp.audit(classifier.to(elsewhere), images, labels, aalp.Linf(0.2), effort=effort)
    assert sum(result.passed is None for result in here.gates) <= 1  # what no reference was given for
    assert [result.finding for result in there.gates] == [result.finding for result in here.gates]
    assert (there.clean, there.robust) == (here.clean, here.robust)


def test_the_library_takes_images_of_the_cpu_to_the_network(digits_run: Path, elsewhere: torch.device) -> None:
    classifier, (images, labels) = load(digits_run, "last").to(elsewhere), digits(8)
    found = aalp.evaluate(classifier, images, labels, aalp.Linf(0.1), attacks=("pgd-2",))
    assert 0 <= found.robust_accuracy <= found.clean_accuracy <= 1


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    split = open_source("digits", DataOptions()).test
    rows = torch.arange(count)
    return as_float(split.read(rows)), split.labels[rows]


def figures(run: Path) -> dict[str, Any]:
    """What the records beside the weights say, but for when, how fast and where it was found."""
    records = {path.name: json.loads(path.read_text()) for path in sorted(run.rglob("*.json"))}
    return {name: _lasting(record) for name, record in records.items()}


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in WHERE_AND_WHEN}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value
