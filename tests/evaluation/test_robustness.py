from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from evaluation_helpers import FAST, Constant
from scipy import stats
from torch import Tensor, nn

from aalp.data.sources import load_source
from aalp.data.split import ResidentSplit
from aalp.evaluation import robustness
from aalp.evaluation.attacks import Attack, attack_by_name
from aalp.evaluation.outcome import AttackResult, Evaluation
from aalp.evaluation.robustness import evaluate, wilson_interval
from aalp.method.contributions import concentration_n, contributions
from aalp.method.losses import cross_entropy
from aalp.method.pgd import equal_step, perturb
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier


def digits(count: int) -> ResidentSplit:
    test = load_source("digits").test
    assert isinstance(test, ResidentSplit)
    return test.subset(torch.arange(count))


@pytest.mark.parametrize("threat", [Linf(0.3), L2(2.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("attacks", [FAST, ["apgd-ce", "fab-t"]])
def test_a_constant_model_is_as_robust_as_it_is_right(threat: Threat, attacks: list[str]) -> None:
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([1, 0, 1, 2, 1, 3])
    evaluation = evaluate(Classifier(Constant()), images, labels, threat, attacks)
    assert evaluation.clean_accuracy == evaluation.robust_accuracy == 0.5
    assert all(result.accuracy == 0.5 for result in evaluation.results)
    assert evaluation.broken_by.tolist() == [0, 1, 0, 1, 0, 1]
    assert evaluation.predictions.tolist() == [1] * 6


class Mirrored(Classifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flip(3))


def test_clean_accuracy_is_of_what_is_attacked_and_not_of_the_bare_network() -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), torch.rand(40, 1, 8, 8)
    subclass, hooked = Mirrored(network).eval(), Classifier(network).eval()
    hooked.register_forward_pre_hook(lambda _module, inputs: (inputs[0].flip(3),))
    for classifier in (subclass, hooked):
        labels = classifier(images).argmax(1)
        assert (network(images).argmax(1) != labels).any()
        assert evaluate(classifier, images, labels, Linf(1e-6), "fgsm").clean_accuracy == 1


def test_without_an_attack_there_is_no_robust_accuracy() -> None:
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([1, 0])
    evaluation = evaluate(Classifier(Constant()), images, labels, Linf(0.3), ["clean"])
    assert evaluation.clean_accuracy == 0.5
    assert math.isnan(evaluation.robust_accuracy)


def test_a_model_that_is_always_wrong_is_attacked_on_no_image() -> None:
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 2, 3])
    evaluation = evaluate(Classifier(Constant()), images, labels, Linf(0.1), ["fgsm", "cw-2", "autoattack"])
    assert evaluation.clean_accuracy == evaluation.robust_accuracy == 0.0
    assert [result.attacked for result in evaluation.results] == [0, 0, 0]
    assert [part.attacked for part in evaluation.parts] == [0] * 4
    assert evaluation.broken_by.tolist() == [1, 1, 1]


def test_standard_training_gives_no_robustness_and_aalp_does(trained: Callable[[str], Classifier]) -> None:
    standard, aalp = (
        evaluate(trained(name), digits(200), threat=Linf(0.2), attacks=["pgd-20", "cw-20"]) for name in ("standard", "aalp")
    )
    assert standard.clean_accuracy > 0.9
    assert standard.robust_accuracy < 0.03
    assert aalp.clean_accuracy > 0.8
    assert aalp.robust_accuracy > 0.25


@pytest.mark.parametrize("threat", [Linf(0.2), L2(1.0)], ids=["linf", "l2"])
def test_falling_steps_get_further_than_equal_ones(trained: Callable[[str], Classifier], threat: Threat) -> None:
    classifier, images = trained("aalp"), digits(200)

    def reached(steps: int, step_size: float | None) -> float:
        generator = torch.Generator().manual_seed(0)
        clean = images.pixels / 255
        adversarial = perturb(classifier, clean, images.labels, threat, steps, step_size, generator=generator)
        with torch.no_grad():
            return float(cross_entropy(classifier(adversarial), images.labels).mean())

    for falling, equal in ((3, 3), (5, 7), (7, 20)):
        assert reached(falling, None) > reached(equal, equal_step(equal) * threat.eps), (falling, equal)


def test_the_worst_case_is_taken_image_by_image_and_each_loss_is_booked_once(
    trained: Callable[[str], Classifier],
) -> None:
    evaluation = evaluate(trained("aalp"), digits(120), threat=Linf(0.2), attacks=FAST, batch_size=50)
    right = evaluation.predictions == evaluation.labels
    standing = torch.stack([right, *(result.standing for result in evaluation.results)])
    assert [result.name for result in evaluation.results] == FAST
    assert bool((standing <= right).all())
    worst = standing.all(0)
    assert evaluation.robust_accuracy == pytest.approx(worst.double().mean().item())
    assert evaluation.names == ["", "clean", *FAST]
    # The first attack in order that does not leave an image standing is the one that is blamed.
    first = torch.where(worst, 0, 1 + (~standing).int().argmax(0))
    assert evaluation.broken_by.tolist() == first.tolist()
    assert len(set(first.tolist())) > 2


def test_attacks_after_the_first_see_only_images_that_are_classified_right(
    small_classifier: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {}

    def spy(name: str, **_options: object) -> Attack:
        def function(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
            seen.setdefault(name, []).append(len(images))
            # Each part breaks its first image, by cheating: zeros are as good as any other image to this test.
            return images

        return Attack(name, function, attack_by_name(name).settings)

    monkeypatch.setattr(robustness, "attack_by_name", spy)
    classifier = small_classifier(mean=[0.5], std=[0.1])
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % 4
    evaluation = evaluate(classifier, images, labels, Linf(0.1), ["fgsm", "pgd-3", "cw-3", "autoattack"], batch_size=4)
    # 7 are right; one PGD is run on all 10, so that the pairs of wrong images are measured, too.
    seven = [4, 3]
    assert seen["fgsm"] == seen["cw-3"] == seven
    assert seen["pgd-3"] == [4, 4, 2]
    assert all(seen[part] == seven for part in ("apgd-ce", "apgd-t", "fab-t", "square"))
    assert evaluation.robust_accuracy == 0.7


def test_parts_of_autoattack_see_only_survivors_of_the_parts_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images whose first pixel is n / 10 are 'broken' by part number n, which shows the model what it knows as class 0."""
    order = ["apgd-ce", "apgd-t", "fab-t", "square"]
    seen: dict[str, list[int]] = {}

    def part(name: str, **_options: object) -> Attack:
        def function(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
            marks = (images[:, 0, 0, 0] * 10).round().int()
            seen[name] = marks.tolist()
            mine = (marks == order.index(name)).view(-1, 1, 1, 1)
            return torch.where(mine, images.new_tensor(1.0), images)

        return Attack(name, function, {})

    class Bright(nn.Module):
        """Class 0 where the last pixel is bright, class 1 elsewhere."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Linear(4, 2)
            self.logits.weight.data = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, -1]])
            self.logits.bias.data = torch.tensor([-0.5, 0.5])

        def forward(self, images: Tensor) -> Tensor:
            return self.logits(images.flatten(1))

    monkeypatch.setattr(robustness, "attack_by_name", part)
    images = torch.zeros(5, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([3, 0, 2, 1, 4]) / 10
    evaluation = evaluate(Classifier(Bright()), images, torch.ones(5, dtype=torch.int64), Linf(1.0), ["autoattack"])
    assert seen == {"apgd-ce": [3, 0, 2, 1, 4], "apgd-t": [3, 2, 1, 4], "fab-t": [3, 2, 4], "square": [3, 4]}
    assert [part.attacked for part in evaluation.parts] == [5, 4, 3, 2]
    assert [part.accuracy for part in evaluation.parts] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    named = [evaluation.names[position] for position in evaluation.broken_by.tolist()]
    assert named == ["autoattack/square", "autoattack/apgd-ce", "autoattack/fab-t", "autoattack/apgd-t", ""]
    assert evaluation.robust_accuracy == pytest.approx(0.2)


def test_an_evaluation_is_repeatable_and_leaves_the_model_and_the_world_as_they_were(
    small_classifier: Callable[..., Classifier],
) -> None:
    classifier = small_classifier(10)
    classifier.train()
    classifier.network.hidden.eval()
    modes = [module.training for module in classifier.modules()]
    weights = {name: value.clone() for name, value in classifier.state_dict().items()}
    settings = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    state = torch.get_rng_state()
    first, second, other = (
        evaluate(classifier, digits(40), threat=Linf(0.1), attacks=["pgd-3"], seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in classifier.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in classifier.state_dict().items())
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == settings
    assert torch.equal(first.measures["pairing_distance"], second.measures["pairing_distance"])
    assert not torch.equal(first.measures["pairing_distance"], other.measures["pairing_distance"])


def test_batches_do_not_change_what_is_not_random(small_classifier: Callable[..., Classifier]) -> None:
    one, many = (
        evaluate(small_classifier(10), digits(30), threat=Linf(0.1), attacks=["fgsm"], batch_size=size) for size in (30, 7)
    )
    assert torch.equal(one.predictions, many.predictions)
    assert torch.equal(one.results[0].standing, many.results[0].standing)
    torch.testing.assert_close(one.measures["n90"], many.measures["n90"])


def test_measures_are_those_of_the_method_on_the_images_of_the_first_pgd(
    small_classifier: Callable[..., Classifier],
) -> None:
    classifier, split = small_classifier(10), digits(20)
    evaluation = evaluate(classifier, split, threat=Linf(0.1), attacks=["fgsm", "pgd-3", "pgd-4"])
    assert evaluation.measured_on == "pgd-3"
    with torch.no_grad():
        features = classifier.features(split.pixels / 255)
        shares = contributions(features, classifier.head_weight, evaluation.predictions)
    torch.testing.assert_close(evaluation.measures["n90"], concentration_n(shares).float())
    assert bool((evaluation.measures["conflict_cosine"].abs() <= 1 + 1e-6).all())
    assert bool((evaluation.measures["pairing_distance"] > 0).all())
    without = evaluate(classifier, split, threat=Linf(0.1), attacks=["fgsm"])
    assert without.measured_on is None
    assert bool(without.measures["pairing_distance"].isnan().all())
    assert not bool(without.measures["n90"].isnan().any())


def test_progress_is_told_before_each_batch_and_at_the_end(small_classifier: Callable[..., Classifier]) -> None:
    ticks: list[tuple[str, int, int]] = []
    evaluate(
        small_classifier(10),
        digits(5),
        threat=Linf(0.1),
        attacks=["clean", "pgd-1", "pgd-1"],
        batch_size=2,
        tick=lambda *tick: ticks.append(tick),
    )
    assert ticks == [(name, done, 5) for name in ("clean", "pgd-1") for done in (0, 2, 4, 5)]


def test_accuracies_are_shares_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    evaluation = Evaluation(torch.arange(4), labels, torch.tensor([0, 1, 2, 0]), Linf(0.1), 0)
    evaluation.results = [AttackResult("fgsm", torch.tensor([True, False, False, False]), 3, 0.1, {})]
    evaluation.broken_by = torch.tensor([0, 2, 2, 1])
    assert (evaluation.clean_accuracy, evaluation.robust_accuracy, len(evaluation)) == (0.75, 0.25, 4)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (5, 10), (81, 263), (15, 148), (730, 1000), (1, 1)])
def test_the_interval_is_that_of_wilson(successes: int, count: int) -> None:
    known = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((known.low, known.high), abs=1e-6)


def test_the_interval_matches_published_values_and_needs_images() -> None:
    # Newcombe 1998, table I, method 3: 81/263 and 15/148.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    with pytest.raises(ValueError, match="without images"):
        wilson_interval(0, 0)
