from __future__ import annotations

import copy
from collections.abc import Callable

import known_bad
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aalp.evaluation.findings import Finding
from aalp.evaluation.model_gates import (
    WithGradient,
    boundary_points,
    deterministic_gate,
    gradient_gate,
    input_gradient,
    logits_gate,
    noise_gates,
)
from aalp.method.losses import margin
from aalp.method.threat import Linf
from aalp.models.classifier import Classifier

IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(8, dtype=torch.int64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def linear(weight: Tensor, before: nn.Module | None = None) -> Classifier:
    """Logits weight @ pixels, after a step on the pixels."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return Classifier(nn.Sequential(nn.Flatten(), before or nn.Identity(), layer)).eval()


class Step(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


WEIGHT = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
SEVERAL = WEIGHT - WEIGHT.mean(1, keepdim=True)
"""Which predicts several classes on these images."""


def test_the_gradient_of_a_linear_model_by_hand() -> None:
    classifier = linear(WEIGHT)
    rival = classifier(IMAGES)[:, 1:].argmax(1) + 1
    expected = WEIGHT[rival] - WEIGHT[0]
    assert torch.allclose(input_gradient(classifier, IMAGES, LABELS).flatten(1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "bad"),
    [
        (None, 0),
        (Step(lambda pixels: pixels.round()), 8),
        (Step(lambda pixels: pixels.detach()), 8),
        (Step(lambda pixels: pixels / pixels.detach().sign().clamp_max(0)), 8),  # x / 0
    ],
)
def test_zero_absent_and_infinite_gradients_are_counted(before: nn.Module | None, bad: int) -> None:
    finding = gradient_gate(linear(WEIGHT, before), IMAGES, LABELS, Linf(0.1), generator())
    assert (finding.measured, finding.passed) == (bad, bad == 0)


def test_a_cut_graph_gives_zeros_and_a_whole_one_its_own_gradient() -> None:
    images = IMAGES.clone().requires_grad_()
    classifier = linear(WEIGHT)
    (through,) = torch.autograd.grad(WithGradient(classifier)(images).square().sum(), images)
    (own,) = torch.autograd.grad(classifier(images).square().sum(), images)
    assert torch.equal(through, own)
    assert torch.equal(WithGradient(classifier).features(IMAGES), classifier.features(IMAGES))


def test_probabilities_are_told_from_logits() -> None:
    class Outputs:
        def __init__(self, outputs: Tensor) -> None:
            self.outputs = outputs

        def __call__(self, images: Tensor) -> Tensor:
            return self.outputs

    logits = torch.randn(8, 3, generator=generator())
    for outputs, passed, count in (
        (logits, True, 0),
        (logits.softmax(1), False, 8),
        (logits.log_softmax(1), True, 0),
        (logits.sigmoid(), True, 0),
        (torch.cat([logits.softmax(1)[:1], logits[1:]]), True, 1),  # one by chance
        (torch.where(torch.arange(8)[:, None] == 2, torch.inf, logits), False, 1),
    ):
        finding = logits_gate(Outputs(outputs), IMAGES)  # type: ignore[arg-type]
        assert (finding.passed, finding.measured) == (passed, count)


NEAR = (IMAGES + 0.05).clamp(0, 1)


def steady(classifier: Classifier) -> Finding:
    return deterministic_gate(classifier, IMAGES, NEAR, copy.deepcopy(classifier)(NEAR))


def test_noise_and_answers_that_depend_on_the_batch_are_found() -> None:
    assert steady(linear(WEIGHT)).passed is True
    torch.manual_seed(0)
    noisy = linear(WEIGHT, Step(lambda pixels: pixels + 0.1 * torch.randn_like(pixels)))
    assert steady(noisy).passed is False
    by_batch = linear(WEIGHT, Step(lambda pixels: pixels - pixels.mean(0)))
    finding = steady(by_batch)
    assert finding.passed is False
    assert (finding.measured or 0) > 1e-4


def test_a_model_that_keeps_the_images_it_was_shown_is_found() -> None:
    finding = steady(known_bad.keeping(linear(WEIGHT), near=0.1))
    assert finding.passed is False
    assert "answers otherwise than a copy that was not" in finding.detail


def test_a_model_that_keeps_only_images_of_which_a_gradient_is_taken_is_found() -> None:
    kept: list[Tensor] = []

    def before(pixels: Tensor) -> Tensor:
        if pixels.requires_grad:
            kept.append(pixels.detach())
        return kept[-1] + pixels - pixels.detach() if kept and kept[-1].shape == pixels.shape else pixels

    assert steady(linear(WEIGHT, Step(before))).passed is False


def test_answers_that_depend_on_the_batch_off_the_images_alone_are_found() -> None:
    def before(pixels: Tensor) -> Tensor:
        known = torch.cdist(pixels, IMAGES.flatten(1)).amin(1, keepdim=True) < 1e-3
        return torch.where(known, pixels, pixels - pixels.mean(0))

    finding = steady(linear(WEIGHT, Step(before)))
    assert finding.passed is False
    assert "near images" in finding.detail


def test_the_change_under_noise_is_measured_in_units_of_the_spread() -> None:
    # A linear model times 1000 is as stable as before; a fast ripple is not.
    findings = [noise_gates(linear(scale * WEIGHT), IMAGES, LABELS, Linf(0.1), generator())[0] for scale in (1, 1000)]
    assert findings[0].measured == pytest.approx(findings[1].measured, rel=1e-3)
    assert findings[0].passed is True
    # Margin changes by at most |w_rival - w_label|_1 * eps / 100.
    logits = linear(WEIGHT)(IMAGES).detach()
    most = (WEIGHT[1:] - WEIGHT[0]).abs().sum(1).amax() * 0.001 / (logits.amax(1) - logits.amin(1)).amin()
    assert 0 < (findings[0].measured or 0) < float(most)
    rippled = linear(WEIGHT, Step(lambda pixels: pixels + torch.sin(1e5 * pixels)))
    assert noise_gates(rippled, IMAGES, LABELS, Linf(0.1), generator())[0].passed is False


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_two_logits_that_are_level_where_the_decision_changes_do_not_jump_there(scale: float) -> None:
    two = scale * SEVERAL[:2]
    points, _ = boundary_points(linear(two), IMAGES)
    assert linear(two)(points).diff(dim=1).abs().amax() < 1e-5 * scale
    stable, along = noise_gates(linear(two), IMAGES, LABELS, Linf(0.1), generator())
    assert stable.measured < 0.01
    assert (stable.passed, along.passed) == (True, True)


def test_two_logits_that_jump_where_the_decision_changes_are_found() -> None:
    flat = nn.Sequential(nn.Flatten(), Step(lambda pixels: (pixels @ SEVERAL[:2].T).sign() + pixels[:, :2]), nn.Linear(2, 2))
    flat[2].weight.data, flat[2].bias.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.zeros(2)
    finding = noise_gates(Classifier(flat).eval(), IMAGES, LABELS, Linf(0.01), generator())[0]
    assert finding.passed is False
    assert "where decisions change" in finding.detail


def slope(before: Callable[[Tensor], Tensor], scale: float = 1, eps: float = 0.1) -> Finding:
    return noise_gates(linear(scale * WEIGHT, Step(before)), IMAGES, LABELS, Linf(eps), generator())[1]


@pytest.mark.parametrize("scale", [1, 1000, 1e-4])
def test_a_linear_model_moves_as_its_gradient_foretells_whatever_its_scale(scale: float) -> None:
    assert slope(lambda pixels: pixels, scale).measured == pytest.approx(0, abs=1e-4)


def test_a_gradient_of_which_a_part_is_cut_off_correlates_as_far_as_it_goes() -> None:
    kept = torch.arange(16) % 4 > 0
    finding = slope(lambda pixels: torch.where(kept, pixels, pixels.detach()))
    # Independent noise of one size on every pixel: the correlation is the share of the gradient's length that is left.
    rival = linear(WEIGHT)(IMAGES)[:, 1:].argmax(1) + 1
    whole = WEIGHT[rival] - WEIGHT[0]
    expected = 1 - float((whole[:, kept].norm(dim=1) / whole.norm(dim=1)).mean())
    assert finding.measured == pytest.approx(expected, abs=0.03)
    assert slope(lambda pixels: torch.where(torch.arange(16) % 2 > 0, pixels, pixels.detach())).passed is False


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_context, pixels, levels):
        return (pixels * levels).round() / levels

    @staticmethod
    def backward(_context, gradient):
        return gradient, None


def test_a_stand_in_for_rounding_passes_where_the_rounding_is_far_below_eps() -> None:
    fine, coarse = (slope(lambda pixels, n=levels: StraightThrough.apply(pixels, n)) for levels in (1000, 8))
    assert fine.passed is True
    assert "eps / 10" in fine.detail
    assert coarse.passed is False


def test_a_prediction_that_the_logits_do_not_tell_before_it_changes_is_found() -> None:
    # One network decides and another one gives the slope: smooth everywhere but where decisions change.
    def decided_by(pixels: Tensor) -> Tensor:
        return 20 * F.one_hot((pixels @ SEVERAL.T).argmax(1), 3) + 0.1 * pixels[:, :3]

    flat = nn.Sequential(nn.Flatten(), Step(decided_by), nn.Linear(3, 3, bias=False))
    flat[2].weight.data = torch.eye(3)
    findings = noise_gates(Classifier(flat).eval(), IMAGES, LABELS, Linf(0.01), generator())
    assert [finding.passed for finding in findings] == [False, False]
    assert all("where decisions change" in finding.detail for finding in findings)


def test_a_backward_pass_that_is_right_at_the_images_alone_is_found() -> None:
    def before(pixels: Tensor) -> Tensor:
        known = torch.cdist(pixels.detach(), IMAGES.flatten(1), p=float("inf")).amin(1, keepdim=True) < 0.01
        return torch.where(known, pixels, 2 * pixels.detach() - pixels)

    finding = slope(before)
    assert finding.passed is False
    assert "at the images" not in finding.detail


def test_boundary_points_are_where_the_decision_changes() -> None:
    classifier = linear(SEVERAL)
    points, predictions = boundary_points(classifier, IMAGES)
    assert torch.equal(predictions, classifier(IMAGES).argmax(1))
    assert margin(classifier(points), predictions).abs().amax() < 1e-5
    alike = boundary_points(classifier, IMAGES[:1])
    assert [len(found) for found in alike] == [0, 0]


@pytest.mark.parametrize("eps", [1e-7, 1e-6, 5e-6, 1e-5])
def test_a_ball_that_float32_rounds_away_accuses_nobody(eps: float) -> None:
    torch.manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    along = noise_gates(Classifier(network).eval(), IMAGES, LABELS, Linf(eps), generator())[1]
    assert along.passed is not False, along


def test_without_a_gradient_there_is_no_slope_to_compare() -> None:
    assert slope(torch.round).passed is None
    assert slope(lambda pixels: pixels.detach()).passed is None
