"""A search looks at cheap copies only of what they are copies of: here are networks that lose something when copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_autoattack import small_net
from torch import Tensor, nn

from aalp.evaluation.attacks import attack_by_name, run_attack
from aalp.evaluation.views import search_precision, views
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        return torch.round(values * 16) / 16

    @staticmethod
    def backward(_context: object, *slopes: Tensor) -> Tensor:
        return slopes[0]


def rounded_without_grad(values: Tensor) -> Tensor:
    with torch.no_grad():
        change = torch.round(values * 16) / 16 - values
    return values + change


class Net(nn.Module):
    """A convolution and a BatchNorm to be folded, behind `before`; its maps are laid flat by `view`, if asked for."""

    def __init__(self, before: Callable[[Tensor], Tensor], viewing: bool = False) -> None:
        super().__init__()
        self.before, self.viewing = before, viewing
        self.convolution, self.norm, self.last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.convolution(self.before(images))).relu()
        return self.last(maps.view(len(maps), -1) if self.viewing else maps.flatten(1))


def unchanged(images: Tensor) -> Tensor:
    return images


def classified(network: Net, kind: type[Classifier] = Classifier) -> tuple[Classifier, Tensor, Tensor]:
    """A classifier, and images labelled as it sees them."""
    images = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = kind(network).eval()
    with torch.no_grad():
        return classifier, images, classifier(images).argmax(1)


def slope(view: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(view(leaf)[:, 0].sum(), leaf)
    return found


@pytest.mark.parametrize("before", [_Rounded.apply, rounded_without_grad], ids=["a function of autograd", "no_grad"])
def test_a_backward_pass_of_its_own_is_searched_by(before: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    classifier, images, labels = classified(Net(before))
    seen = views(classifier, images)
    torch.testing.assert_close(slope(seen.steady, images), slope(classifier, images), rtol=1e-3, atol=1e-5)
    assert slope(classifier, images).abs().amax() > 0
    # Here rounding changes a logit by far less than the attack may: both networks break about alike.
    plain, _, _ = classified(Net(unchanged))
    plain.load_state_dict(classifier.state_dict())
    broken = [
        int(run_attack(attack_by_name("apgd-ce", "float32"), judged, images, labels, Linf(0.2), seed=0)[1].sum())
        for judged in (classifier, plain)
    ]
    assert 12 <= broken[0] <= 24
    assert abs(broken[0] - broken[1]) <= 2


def test_maps_that_are_viewed_as_rows_are_searched_contiguous_and_folded() -> None:
    torch.manual_seed(0)
    classifier, images, labels = classified(Net(unchanged, viewing=True))
    seen = views(classifier, images)
    torch.testing.assert_close(seen.steady(images), classifier(images))
    assert seen.steady is not classifier
    for part in ("apgd-ce", "fab-t"):
        found, _ = run_attack(attack_by_name(part, "float32"), classifier, images[:4], labels[:4], Linf(0.2), seed=0)
        assert found.shape == (4, 1, 8, 8)


class Upside(Classifier):
    """Turns images round before the network sees them."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flip(2))


@pytest.mark.parametrize("roughly", [None, Linf(0.1)])
def test_a_classifier_that_does_more_than_its_network_is_searched_itself(roughly: Linf | None) -> None:
    torch.manual_seed(0)
    classifier, images, _ = classified(Net(unchanged), Upside)
    seen = views(classifier, images, roughly)
    assert seen.steady is classifier
    assert (seen.rough is classifier, seen.is_rough) == (True, False)


def test_a_network_without_any_gradient_is_searched_in_float32() -> None:
    torch.manual_seed(0)
    classifier, images, _ = classified(Net(Tensor.detach))
    assert not views(classifier, images, Linf(0.1)).is_rough


def test_a_network_that_does_not_run_in_bf16_is_tried_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    class Wide(nn.Module):
        """Wants float32 beside its weights, whatever it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.randn(64, 16)), nn.Linear(16, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(torch.mm(images.flatten(1).float(), self.first))

    torch.manual_seed(0)
    views(Classifier(Wide()).eval(), torch.rand(8, 1, 8, 8), Linf(0.1))
    assert capfd.readouterr().err == ""  # torch.fx prints a traceback of its own


def test_a_hook_on_the_classifier_is_not_passed_by() -> None:
    torch.manual_seed(0)
    classifier, images, _ = classified(Net(unchanged))
    classifier.register_forward_pre_hook(lambda _module, given: (given[0] / 2,))
    assert views(classifier, images).steady is classifier


def test_a_model_that_bf16_does_not_carry_is_searched_in_float32() -> None:
    class Offset(nn.Module):
        """Its logits differ by little beside their common offset, which bfloat16 rounds away."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(128, 4)
            self.last.weight.data += 1000

        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)
            return self.last(torch.cat([flat, 1 - flat], dim=1))

    classifier = Classifier(Offset()).eval()
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert search_precision("bf16", classifier, images, Linf(0.05)) == "float32"


def test_a_ball_that_vanishes_in_bf16_is_searched_in_float32() -> None:
    """Bright images of little contrast: bfloat16 has steps of 1/256 between 0.5 and 1."""
    network = small_net().network
    network[1].weight.data *= 16
    network[1].bias.data -= 0.9 * network[1].weight.data.sum(1)
    images = 0.9 + torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 16
    classifier = Classifier(network).eval()
    assert [search_precision("bf16", classifier, images, Linf(eps)) for eps in (0.05, 0.001)] == ["bf16", "float32"]

    class Stretch(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images - 0.9) * 16

    # Where the contrast is raised before the first product, by the classifier or under autocast, nothing vanishes.
    inner = small_net().network
    for stretched in (Classifier(inner, mean=[0.9], std=[1 / 16]), Classifier(nn.Sequential(Stretch(), inner))):
        assert search_precision("bf16", stretched.eval(), images, Linf(0.001)) == "bf16"
