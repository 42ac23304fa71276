"""The one inner loop: projected gradient ascent inside a threat ball (Madry et al., arXiv 1706.06083).

FGSM, FGSM-RS (arXiv 2001.03994) and N-FGSM (arXiv 2202.01181) are settings of it: see `AttackOptions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from aalp.errors import DataError, OptionError
from aalp.method.batches import check_range, class_numbers, float_images, ordinary
from aalp.method.losses import cross_entropy
from aalp.method.threat import Threat, check_threat

PerImageLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, C), labels (N,) or other logits (N, C)) -> (N,)."""

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class AgainstClean:
    """An inner loss that compares the adversarial logits with the clean ones instead of with labels.

    Args:
        divergence: (clean logits, adversarial logits) -> (N,).
    """

    divergence: PerImageLoss


InnerLoss = PerImageLoss | AgainstClean
"""What an attack maximises, per image: (logits, labels) -> (N,), or a comparison with the clean logits."""


class ImageClassifier(Protocol):
    """What attacks and objectives need of a classifier; `aalp.Classifier` makes it from any network."""

    training: bool

    def __call__(self, images: Tensor, /) -> Tensor: ...
    def features(self, images: Tensor, /) -> Tensor: ...
    def head(self, features: Tensor, mask: Tensor | None = None, /) -> Tensor: ...
    def modules(self) -> Iterator[nn.Module]: ...
    @property
    def head_weight(self) -> Tensor: ...


class View:
    """A classifier seen in another way: what a subclass does not change is the classifier's own."""

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier
        self.training, self.head, self.modules = classifier.training, classifier.head, classifier.modules

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.classifier(images)

    def features(self, images: Tensor, /) -> Tensor:
        return self.classifier.features(images)

    @property
    def head_weight(self) -> Tensor:
        return self.classifier.head_weight


@dataclass(frozen=True)
class AttackOptions:
    """Settings of the attack used in training.

    FGSM: steps 1, random_start 0. FGSM-RS: steps 1, step_size 1.25.
    N-FGSM: steps 1, step_size 1, random_start 2, project false.
    Short PGD: steps 3, first_steps 1, eps_ramp 0.3.
    """

    steps: int = 10
    """Gradient steps, at least 1."""

    step_size: float | None = None
    """Size of every step in units of eps; by default steps fall from 2 eps to 2 eps / steps, and one alone is eps."""

    random_start: float = 1.0
    """Radius of the random start in units of eps; 0 starts at the clean image."""

    project: bool = True
    """Project back into the ball after each step; only N-FGSM does without, in training."""

    first_steps: int | None = None
    """Steps at the start of the training, which grow evenly to `steps` at its end; by default `steps` throughout."""

    eps_ramp: float = 0.0
    """Share of the training over which the attack's eps grows from 0 to that of the threat, in [0, 1]."""

    fallback: bool = True
    """Watch an attack of one or two steps for catastrophic overfitting, and go on with three times the steps after it."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"attack steps is {self.steps}: it has to be at least 1")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise OptionError(f"attack step_size is {self.step_size}: it has to be a positive number, in units of eps")
        if not (math.isfinite(self.random_start) and self.random_start >= 0):
            raise OptionError(f"attack random_start is {self.random_start}: it has to be at least 0, in units of eps")
        if self.first_steps is not None and not 1 <= self.first_steps <= self.steps:
            raise OptionError(f"attack first_steps is {self.first_steps}: it has to lie between 1 and steps, {self.steps}")
        if not 0 <= self.eps_ramp <= 1:
            raise OptionError(f"attack eps_ramp is {self.eps_ramp}: it has to lie in [0, 1], a share of the training")

    def step_sizes(self) -> list[float]:
        """The size of each step in units of eps.

        By default step i (from 0) of K is 2 (1 - i / K): the first ones reach the ball's far side, the last ones settle, and
        the loss rises further than by equal steps (docs/decisions/0011). Steps that nothing projects back are equal: falling
        ones would add up to K + 1.
        """
        if self.step_size is not None:
            return [self.step_size] * self.steps
        if self.steps == 1 or not self.project:
            return [equal_step(self.steps)] * self.steps
        return [2.0 * (1.0 - taken / self.steps) for taken in range(self.steps)]

    def at(self, progress: float) -> AttackOptions:
        """The attack when `progress` (0 to 1) of the training is done: each number of steps lasts equally long."""
        if self.first_steps is None:
            return self
        grown = int(progress * (self.steps - self.first_steps + 1) + 1e-9)
        return replace(self, steps=min(self.steps, self.first_steps + grown), first_steps=None)

    def eps_share(self, progress: float) -> float:
        """The attack's eps in units of the threat's, in (0, 1]."""
        # A ball of no size has no inside to attack: the first steps get a hundredth.
        return 1.0 if progress >= self.eps_ramp else max(0.01, progress / self.eps_ramp)


def equal_step(steps: int) -> float:
    """The usual size, in units of eps, of `steps` equal steps: 2.5 / steps, at most 1 (Madry et al.); what PGD-20 means."""
    return min(1.0, 2.5 / steps)


def perturb(
    classifier: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    steps: int = 10,
    step_size: float | None = None,
    loss: InnerLoss | None = cross_entropy,
    *,
    random_start: float = 1.0,
    project: bool = True,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Adversarial images: projected gradient ascent on `loss` inside the threat ball.

    The classifier attacks in evaluation mode (BatchNorm statistics fixed, no dropout) and gets
    back the mode it came in, also when the attack raises. No gradient reaches its weights. It may be called under
    `torch.no_grad` or `torch.inference_mode`.

    Args:
        classifier: an `aalp.Classifier`.
        images: (N, ...) float in [0, 1], on the classifier's device.
        labels: (N,) integers in 0..C-1, of any integer type.
        threat: the ball, such as `aalp.Linf(8 / 255)`.
        steps: gradient steps.
        step_size: size of every step in pixel units; by default they fall from 2 eps, see `AttackOptions.step_sizes`.
        loss: what is maximised, per image; with None (an objective without adversary) the images come back as they are.
        random_start: radius of the random start in units of eps; 0 starts at the clean image.
        project: keep every step inside the ball; off, only in [0, 1].
        mask: feature factors (N, D), fixed for all steps, to attack through Guided Dropout.
        generator: source of the random start, on the images' device.
        observe: called before each step with the images (N, ...) that the gradient is taken at and their logits (N, C).

    Returns:
        (N, ...) float, detached; in [0, 1], and inside the ball unless `project` is off.

    Raises:
        OptionError: the threat is none, steps or step_size make no sense, or the loss has no gradient where the attack starts.
        DataError: images are no floats in [0, 1] (on a GPU only the first batch's range is looked at), or there is not one
            integer label an image.
    """
    check_threat(threat)
    step_size_eps = None if step_size is None else step_size / threat.eps
    options = AttackOptions(steps, step_size_eps, random_start, project)
    if loss is None:
        return images
    check_start(loss, random_start)
    images, labels = float_images(images), class_numbers(labels)
    if len(images) != len(labels):
        raise DataError(f"there are {len(images)} images and {len(labels)} labels: there has to be one label an image")
    if images.device.type == "cpu" or not getattr(classifier, "verified", True):
        check_range(images)  # elsewhere on an `aalp.Classifier`'s first batch alone: the host waits for the answer
    # Inference mode is left first: leaving it turns gradients on.
    with torch.inference_mode(False), evaluating(classifier), torch.enable_grad():
        images, labels = ordinary(images.detach()), ordinary(labels)
        mask = None if mask is None else ordinary(mask)
        logits_of = _logits_through(classifier, mask)
        ascend = _with_clean(loss, logits_of, images) if isinstance(loss, AgainstClean) else loss
        adversarial = threat.random_start(images, generator, random_start) if random_start > 0 else images
        # Without projection the images leave the ball (N-FGSM), and still are images.
        keep = threat.projection(images) if project else lambda candidates: candidates.clamp(0.0, 1.0)
        adversarial = keep(adversarial)
        for size in options.step_sizes():
            adversarial = adversarial.detach().requires_grad_()
            logits = logits_of(adversarial)
            if observe is not None:
                observe(adversarial.detach(), logits.detach())
            gradient = _gradient(ascend, logits, labels, adversarial)
            adversarial = keep(adversarial.detach().add(threat.steepest_step(gradient), alpha=size * threat.eps))
    return adversarial.detach()


def check_start(loss: InnerLoss | None, random_start: float) -> None:
    """Refuse to start at the clean image where it is what the loss compares with: the gradient is 0 there.

    Raises:
        OptionError: so it is.
    """
    if isinstance(loss, AgainstClean) and random_start == 0:
        raise OptionError(
            "attack random_start is 0 and the objective's adversary moves away from the clean logits, where that has no "
            "gradient: start at random, with random_start 1"
        )


def _logits_through(classifier: ImageClassifier, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    if mask is None:
        return classifier
    return lambda images: classifier.head(classifier.features(images), mask)


def _gradient(ascend: PerImageLoss, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """The gradient (N, ...) of each image's loss at the images; up to a factor for each of them in float16."""
    if not _in_float16(logits):
        return torch.autograd.grad(ascend(logits, labels).sum(), images)[0]
    # Of an image that the network is sure of, all of it is below 6e-8, the least of float16: the image would stay as it is.
    # A step looks at the direction alone, so that each image's gradient may go back through the network as large as 1.
    wide = logits.detach().float().requires_grad_()
    (at_logits,) = torch.autograd.grad(ascend(wide, labels).sum(), wide)
    largest = at_logits.abs().amax(1, keepdim=True).clamp_min(torch.finfo(at_logits.dtype).tiny)
    return torch.autograd.grad(logits, images, (at_logits / largest).to(logits.dtype))[0]


def _in_float16(logits: Tensor) -> bool:
    """Whether what gave these logits works in float16, also where they are float32 in the end."""
    kind = logits.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return logits.dtype == torch.float16 or (autocast and torch.get_autocast_dtype(kind) == torch.float16)


def _with_clean(loss: AgainstClean, logits_of: Callable[[Tensor], Tensor], images: Tensor) -> PerImageLoss:
    with torch.no_grad():
        clean_logits = logits_of(images)
    return lambda logits, _labels: loss.divergence(clean_logits, logits)


@contextmanager
def evaluating(classifier: ImageClassifier) -> Iterator[None]:
    """Every module in evaluation mode inside the block, and back in the mode it had after it."""
    trained = [module for module in classifier.modules() if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def in_evaluation_mode(module: Module) -> Module:
    """The module with every part in evaluation mode.

    Not by `eval()`: a layer's own `train` may do more than set the mode. One of LoRA merges its weights there, and weights that
    are merged once are not those to average or to write down.
    """
    for part in module.modules():
        part.training = False
    return module
