"""Other people's attacks: `package.module:function`, `foolbox:NAME`, `art:NAME`, judged as ours are.

An attack may do what it likes in its own package; what counts is what it hands back. A candidate that leaves the ball,
the range [0, 1] or the finite numbers is no adversarial example of this threat: it is not moved back, which would make
another image of it, but counts as a failed attempt on its image, and is counted (`AttackResult.outside`).
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aalp.errors import AalpError, OptionError, unknown_name
from aalp.evaluation.autoattack import AttackFunction
from aalp.method.threat import Threat
from aalp.models.buffers import kept_buffers
from aalp.models.classifier import Classifier
from aalp.own_code import imported
from aalp.seeding import seed_global_generators

OwnAttack = Callable[..., Tensor]
"""(model, images, labels) -> adversarial images; one that has a parameter `threat` is given the ball by that name."""

LIBRARIES = {"foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}
"""Prefixes of attacks from packages, and the packages' names."""

SLACK = 1e-3
"""Share of eps by which a foreign candidate may leave the ball and count as rounding, which is projected away.

L2 attacks rescale float32 vectors of thousands of pixels; a thousandth of eps fools no image that eps does not.
"""


def is_foreign(name: str) -> bool:
    """Whether this name is of an attack that is not ours."""
    return ":" in name


def runs_own_code(name: str) -> bool:
    """Whether naming this attack runs a user's module."""
    return is_foreign(name) and name.partition(":")[0] not in LIBRARIES


def foreign_attack(name: str) -> tuple[AttackFunction, dict[str, float | int | str]]:
    """The attack of this name, and what a record tells of it.

    Raises:
        OptionError: it cannot be imported, or is not of the kind that is needed.
        AalpError: its package is not installed.
    """
    library, _, attack = name.partition(":")
    if library in LIBRARIES:
        if find_spec(library) is None:
            raise AalpError(f"attack '{name}' needs {LIBRARIES[library]}: pip install \"aalp[{library}]\"")
        function = _foolbox(attack) if library == "foolbox" else _art(attack)
        return function, {"package": LIBRARIES[library], "version": metadata.version(LIBRARIES[library])}
    own = _imported(name)
    return own_attack(own, name), {"function": name, "sha256": _digest(own)}


def own_attack(function: OwnAttack, name: str) -> AttackFunction:
    """A user's (model, images, labels) -> adversarial as an attack of ours: with gradients on, and with seeded generators.

    Generators, and whatever it did to the model but to its weights, are put back.

    Raises (when it runs):
        OptionError: it raises, or returns something else than images of the shape that it got.
    """
    takes_threat = "threat" in inspect.signature(function).parameters

    def attack(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        devices = [images.device] if images.device.type == "cuda" else []
        # Copies of the images, since an attack may change them in place.
        with torch.random.fork_rng(devices=devices), _generators_restored(), _model_restored(classifier), torch.enable_grad():
            seed_global_generators(seed)
            try:
                result = function(classifier, images.clone(), labels.clone(), **({"threat": threat} if takes_threat else {}))
            except AalpError:
                raise
            except Exception as error:  # somebody else's code runs here, and may raise anything
                raise OptionError(f"attack '{name}' failed: {type(error).__name__}: {error}") from error
        if not isinstance(result, Tensor) or result.shape != images.shape or not result.is_floating_point():
            found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
            wanted = f"float images {tuple(images.shape)} in [0, 1]"
            raise OptionError(f"attack '{name}' returned {found}: it has to return {wanted}")
        return result.detach().to(images)

    return attack


def leaving(candidates: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """Which candidates (N,) are no images of this threat, rounding forgiven (`SLACK`)."""
    flat = candidates.flatten(1)
    slack = SLACK * threat.eps
    in_range = (flat >= -slack).all(1) & (flat <= 1 + slack).all(1)
    # Not finite is outside, too: a comparison with nan is false.
    return ~(in_range & (threat.distance(candidates, images) <= threat.eps + slack))


def _imported(name: str) -> OwnAttack:
    function = imported(name, "attack", "package.module:function", OptionError)
    if not callable(function) or inspect.isclass(function):
        raise OptionError(f"attack '{name}' is a {type(function).__name__}: a function (model, images, labels) is needed")
    return function  # type: ignore[no-any-return]


def _digest(function: OwnAttack) -> str:
    """Of the file that a function is written in: a record says which version ran."""
    try:
        return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
    except (TypeError, OSError):  # not written in a file
        return "unknown"


def _foolbox(name: str) -> AttackFunction:
    """An attack of foolbox with its own defaults, within our eps."""
    with _quiet():
        import foolbox
    known = {key: value for key, value in vars(foolbox.attacks).items() if _is_attack(value, foolbox.attacks.base.Attack)}
    if name not in known:
        raise OptionError(unknown_name("foolbox attack", name, _near(name, known)))
    try:
        attack: Any = known[name]()
    except TypeError as error:
        raise OptionError(f"foolbox attack '{name}' needs arguments ({error}): call it in a function of your own") from error
    distance = {"Linf": foolbox.distances.linf, "L2": foolbox.distances.l2}

    def function(model: Classifier, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
        # Its eps would mean something else than ours.
        if getattr(attack, "distance", distance[threat.norm]) != distance[threat.norm]:
            norms = f"the norm {attack.distance}, the threat of {threat.norm}"
            raise OptionError(f"foolbox attack '{name}' is of {norms}: choose one that fits, or another --norm")
        with _quiet():
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
            _, clipped, _ = attack(wrapped, images, labels, epsilons=threat.eps)
        result: Tensor = clipped
        return result

    return own_attack(function, f"foolbox:{name}")


def _art(name: str) -> AttackFunction:
    """An attack of the Adversarial Robustness Toolbox with its own defaults, told our eps and norm where it asks for them."""
    with _quiet():
        from art.attacks import evasion
        from art.attacks.attack import EvasionAttack
        from art.estimators.classification import PyTorchClassifier
    known = {key: value for key, value in vars(evasion).items() if _is_attack(value, EvasionAttack)}
    if name not in known:
        raise OptionError(unknown_name("art attack", name, _near(name, known)))
    accepts = inspect.signature(known[name]).parameters

    def function(model: Classifier, images: Tensor, _labels: Tensor, threat: Threat) -> Tensor:
        settings = {
            "eps": threat.eps,
            "eps_step": threat.eps / 4,  # its default is an absolute 0.1, larger than most balls
            "norm": np.inf if threat.norm == "Linf" else 2,
            "targeted": False,  # some aim at a class by default, and would take the label for it
            "batch_size": len(images),
            "verbose": False,
        }
        with _quiet():
            estimator = PyTorchClassifier(
                _InFloat32(model),
                loss=torch.nn.CrossEntropyLoss(),
                input_shape=tuple(images.shape[1:]),
                nb_classes=model.num_classes,
                clip_values=(0.0, 1.0),
                device_type="gpu" if images.device.type == "cuda" else "cpu",
            )
            attack = known[name](estimator, **{key: value for key, value in settings.items() if key in accepts})
            # No labels: all of these images are classified right, and those attacks that can only aim would aim at them.
            found = attack.generate(x=images.cpu().numpy())
        return torch.from_numpy(np.asarray(found, dtype=np.float32))

    return own_attack(function, f"art:{name}")


class _InFloat32(nn.Module):
    """A classifier of images of any float type, as attacks that work in NumPy's float64 give them."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images.float())
        return logits


def _is_attack(value: object, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)


def _near(name: str, known: dict[str, Any]) -> list[str]:
    """A few of the names, so that the error stays readable."""
    return difflib.get_close_matches(name, known, n=5, cutoff=0.3) or sorted(known)[:5]


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Python's and NumPy's generators as they were, after the block; torch has `fork_rng`."""
    ours, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)


@contextmanager
def _model_restored(model: nn.Module) -> Iterator[None]:
    """The model's modes, gradients, statistics and what takes gradients as they were, after the block.

    Code of trainings ends in `model.train()` and calls `backward`: the model would be judged in training mode, and come
    back with gradients and other statistics.
    """
    modes = [(module, module.training) for module in model.modules()]
    taken = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in taken:
        parameter.grad = None  # else `backward` adds to the caller's, in place
    try:
        with kept_buffers(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, requires_grad, grad in taken:
            parameter.requires_grad_(requires_grad).grad = grad


@contextmanager
def _quiet() -> Iterator[None]:
    """Without other packages' warnings on their own internals, which a user of ours can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
