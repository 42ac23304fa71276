"""Attacks by name. Every one of them is called the same way, and none can score from outside the ball.

Names: `fgsm`; `pgd-K` (cross-entropy, K steps); `cw-K` (PGD on the margin, K steps);
`apgd-ce`, `apgd-t`, `fab-t`, `square` (the four parts of AutoAttack, one by one); `package.module:function`,
`foolbox:NAME` and `art:NAME` (see `foreign_attacks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aalp.errors import AalpError, ModelError, OptionError, unknown_name
from aalp.evaluation.autoattack import SEARCHED_ROUGHLY, STANDARD, AttackFunction, autoattack_part, exact_part
from aalp.evaluation.foreign_attacks import OwnAttack, foreign_attack, is_foreign, leaving, own_attack
from aalp.evaluation.views import Searched
from aalp.method.batches import per_image
from aalp.method.losses import cross_entropy, margin, misclassified
from aalp.method.pgd import equal_step, evaluating, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.models.copies import forget


@dataclass(frozen=True)
class Attack:
    """An attack and how it is recorded.

    Attributes:
        foreign: what leaves the ball counts as a failed attempt; an attack of ours, whose last step may, is projected.
    """

    name: str
    function: AttackFunction
    settings: Mapping[str, float | int | str]
    foreign: bool = False


def attack_by_name(name: str, search: Searched = "float32", exact_seed: int | None = None) -> Attack:
    """The attack of this name.

    Args:
        search: precision in which the parts of AutoAttack that lose nothing by it are searched.
        exact_seed: run AutoAttack's parts by its authors' package, with this seed.

    Raises:
        OptionError: there is none.
    """
    if is_foreign(name):
        function, settings = foreign_attack(name)
        return Attack(name, function, settings, foreign=True)
    kind, _, number = name.partition("-")
    if name == "fgsm":
        return _gradient_attack(name, steps=1, loss="cross-entropy", relative_step=1.0, random_start=0.0)
    if kind in ("pgd", "cw") and number.isdecimal() and int(number) > 0:
        steps = int(number)
        loss = "cross-entropy" if kind == "pgd" else "margin"
        return _gradient_attack(name, steps, loss, relative_step=equal_step(steps), random_start=1.0)
    if name in STANDARD:
        if exact_seed is not None:
            by_package: dict[str, float | int | str] = {"by": "pyautoattack", "version": "standard", "search": "float32"}
            return Attack(name, exact_part(name, exact_seed), by_package | {"package_seed": exact_seed})
        precision = search if name in SEARCHED_ROUGHLY else "float32"
        return Attack(name, autoattack_part(name, search=search), {"by": "aalp", "version": "standard", "search": precision})
    raise OptionError(unknown_name("attack", name, ["clean", "fgsm", "pgd-20", "cw-40", "autoattack", *STANDARD]))


def check_attacks(names: Sequence[str]) -> None:
    """Refuse names that no attack has before anything runs.

    Raises:
        OptionError: see `attack_by_name`.
    """
    for name in names:
        if name not in ("clean", "autoattack"):
            attack_by_name(name)


def attack_by_function(function: OwnAttack) -> Attack:
    """A callable (model, images, labels) -> adversarial as an attack."""
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"
    return Attack(name, own_attack(function, name), {"function": name}, foreign=True)


def run_attack(
    attack: Attack,
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    note_outside: Callable[[Tensor], None] = lambda outside: None,
) -> tuple[Tensor, Tensor]:
    """Attack a batch and judge the outcome in float32.

    Args:
        images: (N, channels, height, width) float32 in [0, 1]; the classifier is in evaluation mode.
        note_outside: called, for a foreign attack, with which images (N,) it left the ball on: there the clean image stands in.

    Returns:
        Adversarial images (N, ...), in the ball whatever the attack gave, and which of them (N,) are misclassified.

    Raises:
        ModelError: the attack needs a gradient, and the network has none.
    """
    try:
        candidates = attack.function(classifier, images, labels, threat, seed)
    except RuntimeError as error:  # autograd's own, among many others
        if reaches_images(classifier, images[:2]):
            raise
        raise ModelError(
            f"attack '{attack.name}' finds no gradient: autograd does not see a step of the network (no_grad, detach, numpy): "
            "make it differentiable, or attack with square, which needs none"
        ) from error
    if attack.foreign:
        outside = leaving(candidates, images, threat)
        note_outside(outside)
        candidates = torch.where(per_image(outside, images), images, candidates)
    # What is not finite is no image; elsewhere the projection undoes any step out of the ball before anything counts.
    candidates = torch.where(torch.isfinite(candidates), candidates, images)
    adversarial = threat.project(candidates.float(), images)
    assert bool(threat.contains(adversarial, images).all())
    with torch.no_grad():
        fooled = misclassified(classifier(adversarial), labels)
    return adversarial, fooled


@torch.no_grad()
def check_any_number(classifier: Classifier, images: Tensor) -> None:
    """Refuse a network that does not take two images, or one alone: attacks go on with those that stand, however few are left.

    Args:
        images: (N, ...) some that are attacked; the classifier is in evaluation mode.

    Raises:
        ModelError: it raises, or what it returns are no logits of its head.
    """
    for some in (images[:2], images[:1]):
        try:
            classifier.verify(some)
        except AalpError:
            raise
        except Exception as error:  # the user's network runs here, and may raise anything
            raise ModelError(
                f"the network does not take images of {'x'.join(map(str, some.shape[1:]))} in a batch of {len(some)} "
                f"({type(error).__name__}: {error}): attacks go on with the images that stand, so let it take any number"
            ) from error


def reaches_images(classifier: Classifier, images: Tensor) -> bool:
    """Whether autograd finds a way from the logits back to the images."""
    with evaluating(classifier), torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = classifier(images)
        found = logits.requires_grad and torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is not None
        forget(classifier, images)
    return found


def _gradient_attack(name: str, steps: int, loss: str, relative_step: float, random_start: float) -> Attack:
    inner = cross_entropy if loss == "cross-entropy" else margin

    def function(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        generator = torch.Generator(images.device).manual_seed(seed)
        step_size = relative_step * threat.eps
        return perturb(
            classifier, images, labels, threat, steps, step_size, inner, random_start=random_start, generator=generator
        )

    settings: dict[str, float | int | str] = {
        "steps": steps,
        "step_size_in_eps": relative_step,
        "random_start": random_start,
        "loss": loss,
    }
    return Attack(name, function, settings)
