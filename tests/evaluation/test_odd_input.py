"""Evaluations of what no evaluation hopes to get: input that is refused, and numbers that are none."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_helpers import FAST, Constant
from torch import Tensor, nn
from torch.nn import functional

from aalp.errors import AalpError, ModelError, OptionError
from aalp.evaluation.audit import audit
from aalp.evaluation.autoattack import _squares_fit, _standard, autoattack_part
from aalp.evaluation.first_gates import cheap_gates
from aalp.evaluation.robustness import evaluate
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threat": None}, "threat is missing"),
        ({"threat": 0.1}, r"threat is 0.1: give one, such as Linf\(8 / 255\)"),
        ({"labels": None}, "labels are missing"),
        ({"labels": torch.tensor([0, 4])}, r"label 4: labels have to be 0\.\.3"),
        ({"labels": torch.tensor([0])}, "2 images and 1 labels"),
        ({"labels": torch.tensor([0.0, 1.0])}, "one integer an image"),
        ({"images": torch.full((2, 1, 8, 8), 1.5)}, r"scale them to \[0, 1\]"),
        ({"images": torch.full((2, 1, 8, 8), math.nan)}, "not finite"),
        ({"attacks": ["fgsm", "pdg-3"]}, "did you mean 'pgd-20'"),
        ({"attacks": "fgsm, pdg-3"}, "unknown attack 'pdg-3': did you mean 'pgd-20'"),
        ({"batch_size": 0}, "batch_size is 0: it has to be at least 1"),
        ({"images": np.zeros((2, 1, 8, 8))}, "images of type ndarray: give a tensor"),
        ({"labels": [0, 1]}, "labels of type list: give a tensor"),
        ({"classifier": nn.Linear(2, 2)}, r"a Linear: wrap the network, aalp\.Classifier"),
        ({"classifier": nn.DataParallel(Classifier(Constant()))}, r"a DataParallel: give the aalp\.Classifier inside it"),
        ({"classifier": Classifier(Constant()).bfloat16()}, r"'network.logits.weight' is torch.bfloat16: .* in float32, give"),
        ({"classifier": Classifier(Constant()).double()}, r"'network.logits.weight' is torch.float64: .*\.float\(\)"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    changes: dict[str, Any], message: str, small_classifier: Callable[..., Classifier]
) -> None:
    arguments = {
        "classifier": small_classifier(),
        "images": torch.zeros(2, 1, 8, 8),
        "labels": torch.tensor([0, 1]),
        "threat": Linf(0.1),
        "attacks": ["fgsm"],
    }
    with pytest.raises(AalpError, match=message):
        evaluate(**{**arguments, **changes})


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integers_and_attacks_in_one_text_are_taken(kind: torch.dtype, small_classifier) -> None:
    classifier, generator = small_classifier(), torch.Generator().manual_seed(0)
    images, labels = torch.rand(6, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    told = evaluate(classifier, images, labels.to(kind), Linf(0.1), "fgsm, pgd-2")
    assert torch.equal(told.broken_by, evaluate(classifier, images, labels, Linf(0.1), ["fgsm", "pgd-2"]).broken_by)


def test_pixels_that_are_out_of_range_by_rounding_are_evaluated_as_the_nearest_in_it(small_classifier) -> None:
    # As torchvision's Resize makes them of white float images.
    classifier, images, labels = small_classifier(), torch.rand(4, 1, 8, 8).round(), torch.arange(4)
    exact, rounded = (evaluate(classifier, given, labels, Linf(0.1), FAST) for given in (images, images * (1 + 2e-7) - 1e-7))
    assert rounded.broken_by.equal(exact.broken_by)


def test_an_evaluation_under_inference_mode_is_the_same(small_classifier) -> None:
    classifier, images = small_classifier(), torch.rand(4, 1, 8, 8)
    labels = classifier(images).argmax(1)  # right, so that there is something to attack
    attacks = [*FAST, "apgd-ce", "fab-t"]
    outside = evaluate(classifier, images, labels, Linf(0.02), attacks)
    with torch.inference_mode():
        inside = evaluate(classifier, images.clone(), labels.clone(), Linf(0.02), attacks)
    assert inside.broken_by.equal(outside.broken_by)
    assert outside.clean_accuracy == 1.0


@pytest.mark.parametrize("attacks", [FAST, ["apgd-ce", "apgd-t", "fab-t", "square"]])
def test_logits_that_are_not_numbers_are_right_for_no_image(attacks: list[str]) -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    broken = Classifier(Constant())
    broken.network.logits.bias.data[1] = math.nan  # argmax takes it for the largest
    evaluation = evaluate(broken, images, torch.tensor([1, 0, 1, 2, 1, 3]), Linf(0.3), attacks)
    assert evaluation.clean_accuracy == evaluation.robust_accuracy == 0
    assert evaluation.predictions.tolist() == [-1] * 6


class BreaksWhereItIsUnsure(nn.Module):
    """Not a number at the largest logit where the two largest are near: as argmax sees it, still the prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(2, 2)
        self.logits.weight.data, self.logits.bias.data = torch.eye(2), torch.zeros(2)

    def forward(self, images: Tensor) -> Tensor:
        light = images.flatten(1).mean(1)
        logits = torch.stack([0.5 - light, light - 0.5], 1)
        near = (logits[:, 0] - logits[:, 1]).abs() < 0.3
        return self.logits(torch.where(near[:, None], logits.detach() * math.nan, logits))


def test_an_attack_that_ends_in_logits_that_are_not_numbers_has_broken_the_image() -> None:
    images = torch.cat([torch.full((2, 1, 8, 8), 0.3), torch.full((2, 1, 8, 8), 0.7)])
    evaluation = evaluate(
        Classifier(BreaksWhereItIsUnsure()), images, torch.tensor([0, 0, 1, 1]), Linf(0.1), ["fgsm", "square"]
    )
    assert evaluation.clean_accuracy == 1
    assert [result.accuracy for result in evaluation.results] == [0, 0]


@pytest.mark.parametrize("size", [(4, 8), (12, 12), (14, 14), (24, 24), (64, 48), (14, 28)])
def test_square_in_l2_runs_on_images_that_its_first_squares_do_not_fit_in(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 1, *size)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(size), 4)))
    labels = classifier(images).argmax(1)
    assert autoattack_part("square", queries=40)(classifier, images, labels, L2(20.0), 0).shape == images.shape
    assert evaluate(classifier, images, labels, L2(20.0), "square").robust_accuracy == 0
    for attacks in ("autoattack", "square"):
        with pytest.raises(OptionError, match=rf"on images of {size[0]} x {size[1]}, .*leave out exact"):
            evaluate(classifier, images, labels, L2(0.5), attacks, exact=True)


SIZES = [(5, 9), (8, 8), (11, 11), (12, 12), (13, 13), (14, 28), (24, 24), (25, 25), (28, 14), (28, 28), (64, 8), (64, 48)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_sizes_that_exact_refuses_are_those_on_which_the_package_ends_in_an_error(height: int, width: int) -> None:
    images = torch.rand(1, 1, height, width)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(height * width, 4)))
    attack = _standard(classifier, L2(1e-6), 0, torch.device("cpu")).square
    attack.n_queries = 2
    raises = nullcontext() if _squares_fit(height, width) else pytest.raises(RuntimeError)
    with raises:
        attack.perturb(images, classifier(images).argmax(1))


@pytest.mark.parametrize("kept", [threading.Lock(), math, ctypes.pointer(ctypes.c_int())])
def test_a_network_that_cannot_be_copied_is_refused(kept: object) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    network.codec = kept
    images = torch.rand(2, 1, 8, 8)
    classifier = Classifier(network)
    labels = classifier(images).argmax(1)
    message = r"does not let itself be copied \(.*pickle.*\): keep what is no tensor outside"
    with pytest.raises(ModelError, match=message):
        evaluate(classifier, images, labels, Linf(0.1), "apgd-ce")
    with pytest.raises(ModelError, match=message):
        audit(classifier, images, labels, Linf(0.1))
    assert evaluate(classifier, images, labels, Linf(0.1), "pgd-2").results  # needs no copy


class Root(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sqrt()


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.8)], ids=["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd-5", "cw-5", "apgd-ce", "apgd-t", "fab-t"])
def test_pixels_without_a_finite_slope_keep_no_attack_from_the_others(attack: str, threat: Threat) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 4)
    with torch.no_grad():
        linear.weight[:, :8] = 0  # a slope of 0 x infinity where such a pixel is black, of infinity at the other black ones
    classifier = Classifier(nn.Sequential(Root(), nn.Flatten(), linear))
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    images[:, :, :2] = 0
    evaluation = evaluate(classifier, images, classifier(images).argmax(1), threat, attack)
    assert evaluation.robust_accuracy < 0.7


class LeavesEarly(nn.Module):
    """Images whose first pixel is black have their logits from another layer; the head sees the others, or all of them."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole, self.early, self.logits = whole, nn.Linear(64, 4), nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        late = pixels[:, 0] > 0
        if self.whole:
            return torch.where(late[:, None], self.logits(pixels), self.early(pixels))
        if late.all():
            return self.logits(pixels)
        return self.early(pixels).index_put((late.nonzero()[:, 0],), self.logits(pixels[late]))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("late", [2, 1])
def test_a_network_whose_head_does_not_give_every_image_s_logits_is_refused(whole: bool, late: int) -> None:
    # Of one late image the prediction had become that of all of them.
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.1
    classifier = Classifier(LeavesEarly(whole)).eval()
    classifier.verify(images)
    images[late:, :, 0, 0] = 0
    with pytest.raises(ModelError, match="output is not what the network's last Linear 'logits' gives"):
        evaluate(classifier, images, classifier(images).argmax(1), Linf(0.01), "fgsm")
    with pytest.raises(ModelError, match="output is not what the network's last Linear 'logits' gives"):
        audit(classifier, images, classifier(images).argmax(1), Linf(0.01))


class Alone(nn.Module):
    """Takes the images in a way of its own, and gives what comes of it."""

    def __init__(self, way: Callable[[Tensor], Any], result: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.way, self.result, self.logits = way, result, nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Any:
        return self.result(self.logits(self.way(images.flatten(1))))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Alone(lambda pixels: functional.batch_norm(pixels, None, None, training=True)),
            r"in a batch of 1 \(ValueError: Expected",
        ),
        (Alone(lambda pixels: pixels.view(6, 64)), r"images of 1x8x8 in a batch of 2 \(RuntimeError: shape"),
        (Alone(lambda pixels: pixels.view(2, 64)), r"images of 1x8x8 in a batch of 1 \(RuntimeError: shape"),
        (Alone(lambda pixels: pixels, lambda logits: (logits, logits)), "returns a tuple: it has to return one tensor"),
        (Alone(lambda pixels: pixels, lambda logits: {"logits": logits}), "returns a dict: it has to return one tensor"),
    ],
    ids=["statistics of the batch", "batch of six", "batch of two", "tuple", "dict"],
)
def test_a_network_that_cannot_be_searched_is_refused_before_any_attack(network: nn.Module, message: str) -> None:
    images, labels = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ModelError, match=message):
        evaluate(Classifier(network), images, labels, Linf(0.1), "autoattack")
    with pytest.raises(ModelError, match=message):
        audit(Classifier(network), images, labels, Linf(0.1))


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4)], ids=["linf", "l2"])
def test_logits_that_a_network_turns_into_float64_are_judged_as_they_are(threat: Threat) -> None:
    torch.manual_seed(0)
    images, attacks = torch.rand(12, 1, 8, 8), ["pgd-5", "apgd-ce", "apgd-t", "fab-t", "square"]
    plain, wide = Classifier(Alone(lambda pixels: pixels)), Classifier(Alone(lambda pixels: pixels, Tensor.double))
    wide.load_state_dict(plain.state_dict())
    labels = plain(images).argmax(1)
    wanted, found = (evaluate(judged, images, labels, threat, attacks) for judged in (plain, wide))
    assert 0 < found.robust_accuracy < 1
    assert torch.equal(found.broken_by, wanted.broken_by)


class Normalises(nn.Module):
    """Subtracts the mean by itself: from a copy of its input, or in place as many strangers' networks do."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.logits = in_place, nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        images = images.sub_(0.4).mul_(3) if self.in_place else (images - 0.4) * 3
        return self.logits(images.flatten(1).relu())


def test_a_network_that_changes_its_input_in_place_is_judged_like_one_that_does_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given, attacks = images.clone(), ["pgd-5", "apgd-ce"]
    plain, working = Classifier(Normalises(False)), Classifier(Normalises(True))
    working.load_state_dict(plain.state_dict())
    labels = plain(images).argmax(1)
    wanted, found = (evaluate(judged, given, labels, Linf(0.03), attacks) for judged in (plain, working))
    assert found.clean_accuracy == 1 > found.robust_accuracy
    assert torch.equal(found.broken_by, wanted.broken_by)
    assert [gate.passed for gate in cheap_gates(working, given, labels, Linf(0.03))] == [True] * 3
    assert torch.equal(given, images)
    assert capfd.readouterr().err == ""  # of tracing
