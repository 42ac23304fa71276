"""Models whose robustness is not what attacks report, each made for some gates of the audit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aalp.models.classifier import Classifier


class Altered(nn.Module):
    """A classifier with a step before and a step after it, and an identity Linear at the end."""

    def __init__(self, inner: Classifier, before=None, after=None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after
        self.logits = nn.Linear(inner.num_classes, inner.num_classes, bias=False)
        nn.init.eye_(self.logits.weight)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images if self.before is None else self.before(images))
        return self.logits(logits if self.after is None else self.after(logits))


def altered(inner: Classifier, before=None, after=None) -> Classifier:
    return Classifier(Altered(inner, before, after), head="logits").eval()


def quantised_input(inner: Classifier) -> Classifier:
    """Five grey levels: the gradient of rounding is zero. Off the data's own grid of 1/16, so that rounding is unambiguous."""
    return altered(inner, before=lambda images: ((images * 4.1).round() / 4.1).clamp(0, 1))


def without_graph(inner: Classifier) -> Classifier:
    """A step that autograd does not see, as a codec or a detour through numpy."""
    return altered(inner, before=lambda images: torch.from_numpy(images.detach().numpy().copy()))


def part_cut_off(inner: Classifier) -> Classifier:
    """Every other column of pixels goes around autograd, as a branch under `no_grad` does: attacks leave those pixels alone."""

    def before(images: Tensor) -> Tensor:
        kept = torch.arange(images.shape[-1]) % 2 == 0
        return torch.where(kept, images, images.detach())

    return altered(inner, before=before)


def huge_logits(inner: Classifier) -> Classifier:
    return altered(inner, after=lambda logits: 1000 * logits)


def probabilities(inner: Classifier) -> Classifier:
    return altered(inner, after=lambda logits: logits.softmax(1))


def noisy(inner: Classifier) -> Classifier:
    return altered(inner, before=lambda images: images + 0.1 * torch.randn_like(images))


def dropout_left_on(inner: Classifier) -> Classifier:
    return altered(inner, before=lambda images: F.dropout(images, 0.2, training=True))


def batch_statistics(inner: Classifier) -> Classifier:
    """Normalised by the batch it comes in: the answer depends on the other images."""
    return altered(inner, after=lambda logits: (logits - logits.mean(0)) / (logits.std(0, correction=0) + 1e-6))


class _Flip(torch.autograd.Function):
    @staticmethod
    def forward(_context, images):
        return images.clone()

    @staticmethod
    def backward(_context, gradient):
        return -gradient


def flipped_gradient(inner: Classifier) -> Classifier:
    return altered(inner, before=_Flip.apply)


def saturated(inner: Classifier) -> Classifier:
    """A steep smooth staircase on the pixels: between its steps the gradient is 0 or next to it."""

    def stairs(images: Tensor) -> Tensor:
        return sum(torch.sigmoid(2000 * (images - (step + 0.5) / 4.1)) for step in range(5)) / 4.1

    return altered(inner, before=stairs)


class Jumping(nn.Module):
    """Logits that jump at the slightest change of the image, by a ripple that autograd does not see."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner = inner
        self.logits = nn.Linear(inner.num_classes, inner.num_classes, bias=False)
        nn.init.eye_(self.logits.weight)
        generator = torch.Generator().manual_seed(0)
        self.waves = torch.empty(64, inner.num_classes).normal_(generator=generator) * 3000

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
        # In float64: what float32 rounds, and each processor and batch size otherwise, is not small here.
        ripple = 0.1 * spread * torch.sin(images.flatten(1).double() @ self.waves.double()).to(spread.dtype)
        return self.logits(logits + ripple.detach())


def jumping(inner: Classifier) -> Classifier:
    return Classifier(Jumping(inner), head="logits").eval()


class Cancelling(nn.Module):
    """Features twice, once with the opposite sign plus a copy without gradient: the logits are right, their gradient is 0."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner = inner
        weight = inner.head_weight.detach()
        self.logits = nn.Linear(2 * weight.shape[1], weight.shape[0])
        self.logits.weight.data = torch.cat([weight, weight], 1)
        self.logits.bias.data = inner.linear.bias.detach().clone()

    def forward(self, images: Tensor) -> Tensor:
        features = self.inner.features(images)
        return self.logits(torch.cat([features, features.detach() - features], 1))


def cancelling(inner: Classifier) -> Classifier:
    return Classifier(Cancelling(inner), head="logits").eval()


class Remembering(nn.Module):
    """Knows the images it is audited on, and answers as on the nearest one where an image is far from all of them."""

    def __init__(self, inner: Classifier, images: Tensor, far: float) -> None:
        super().__init__()
        self.inner, self.images, self.far = inner, images, far
        self.logits = nn.Linear(inner.num_classes, inner.num_classes, bias=False)
        nn.init.eye_(self.logits.weight)

    def forward(self, images: Tensor) -> Tensor:
        distance, nearest = torch.cdist(images.detach().flatten(1), self.images.flatten(1), p=float("inf")).min(1)
        back = (distance > self.far)[:, None, None, None]
        return self.logits(self.inner(torch.where(back, self.images[nearest], images)))


def remembering(inner: Classifier, images: Tensor, far: float) -> Classifier:
    return Classifier(Remembering(inner, images, far), head="logits").eval()


class Keeping(nn.Module):
    """Keeps the first images that it is shown, and answers near each of them as on it: an evaluation begins with clean ones."""

    def __init__(self, inner: Classifier, near: float) -> None:
        super().__init__()
        self.inner, self.near, self.kept = inner, near, None
        self.logits = nn.Linear(inner.num_classes, inner.num_classes, bias=False)
        nn.init.eye_(self.logits.weight)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        if self.kept is None or len(self.kept) < len(images) > 2:
            self.kept = images.detach().clone()
        distance, nearest = torch.cdist(images.detach().flatten(1), self.kept.flatten(1), p=float("inf")).min(1)
        with torch.no_grad():
            known = self.inner(self.kept[nearest])
        # A little of the logits themselves is left, so that there is a gradient.
        return self.logits(torch.where((distance < self.near)[:, None], known + 0.02 * (logits - known), logits))


def keeping(inner: Classifier, near: float = 0.22) -> Classifier:
    return Classifier(Keeping(inner, near), head="logits").eval()


class KeepingLater(Keeping):
    """Keeps images as well, but of many first passes none, so that who only looks at those finds nothing."""

    def __init__(self, inner: Classifier, near: float, first: int) -> None:
        super().__init__(inner, near)
        self.passes, self.first = 0, first

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.logits(self.inner(images)) if self.passes <= self.first else super().forward(images)


def keeping_later(inner: Classifier, near: float = 0.22, first: int = 12) -> Classifier:
    return Classifier(KeepingLater(inner, near, first), head="logits").eval()


class DecidedByAnother(nn.Module):
    """One network decides, and a simple one, the nearest mean image, gives the logits all of their slope: attacks that follow
    gradients or scores walk along the simple one, and never see how near the decision is."""

    def __init__(self, inner: Classifier, images: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.logits = nn.Linear(inner.num_classes, inner.num_classes, bias=False)
        nn.init.eye_(self.logits.weight)
        with torch.no_grad():
            predicted = inner(images).argmax(1)
        means = [images[predicted == label].mean(0) for label in range(inner.num_classes)]
        self.means = torch.stack(means).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            decided = F.one_hot(self.inner(images).argmax(1), self.inner.num_classes)
        simple = images.flatten(1) @ self.means.T - self.means.square().sum(1) / 2
        return self.logits(20 * decided + simple)


def decided_by_another(inner: Classifier, images: Tensor) -> Classifier:
    return Classifier(DecidedByAnother(inner, images), head="logits").eval()


class KnowingCorners(nn.Module):
    """Images lie on a grid, and attacks end exactly eps from it: of 4 such pixels on it takes them back, and turns the slope
    around. At images, at random points and on the way to other images it is the honest network."""

    def __init__(self, inner: Classifier, images: Tensor, eps: float) -> None:
        super().__init__()
        self.inner, self.grid, self.eps = inner, images.unique(), eps
        self.logits = nn.Linear(inner.num_classes, inner.num_classes, bias=False)
        nn.init.eye_(self.logits.weight)

    def forward(self, images: Tensor) -> Tensor:
        pixels, done = images, torch.zeros(len(images), 1, 1, 1, dtype=torch.bool)
        for radius in (self.eps, self.eps / 2, 2 * self.eps):
            up, down = self._moved(images, radius), self._moved(images, -radius)
            corner = ((up | down).flatten(1).sum(1) >= 4)[:, None, None, None] & ~done
            back = _Flip.apply(images) - torch.where(up, radius, 0.0) + torch.where(down & ~up, radius, 0.0)
            pixels, done = torch.where(corner, back, pixels), done | corner
        return self.logits(self.inner(pixels))

    def _moved(self, images: Tensor, by: float) -> Tensor:
        near = ((images.detach()[..., None] - by - self.grid).abs() < 1e-6).any(-1)
        return near & (images > 0) & (images < 1)  # what is cut off tells nothing


def knowing_corners(inner: Classifier, images: Tensor, eps: float) -> Classifier:
    return Classifier(KnowingCorners(inner, images, eps), head="logits").eval()
