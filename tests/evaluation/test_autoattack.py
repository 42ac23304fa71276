"""AutoAttack's parts against the package they come from. Full settings throughout: 100 steps, 5000 queries of Square."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from aalp.data.sources import load_source
from aalp.data.split import as_float
from aalp.errors import OptionError
from aalp.evaluation import autoattack
from aalp.evaluation.apgd import apgd_ce, apgd_targeted
from aalp.evaluation.attacks import attack_by_name, run_attack
from aalp.evaluation.autoattack import STANDARD
from aalp.evaluation.fab import fab_targeted
from aalp.evaluation.robustness import evaluate
from aalp.evaluation.square import _Square, square_linf
from aalp.evaluation.views import Views, search_precision, views
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier

# Large enough for Square to need few of its 5000 queries: each costs a pass, and every image that stands costs all of them.
THREATS = [Linf(0.2), L2(2.0)]


def small_net(classes: int = 4) -> Classifier:
    """A random network with a layer that is random in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, classes))
        return Classifier(nn.Sequential(*layers), mean=[0.5], std=[0.25]).eval()


def right(classifier: Classifier, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images, labelled as the classifier sees them."""
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return images, classifier(images).argmax(1)


def some_digits(classifier: Classifier, count: int) -> tuple[Tensor, Tensor]:
    """The first test digits that the classifier gets right."""
    test = load_source("digits").test
    images, labels = as_float(test.read(torch.arange(60))), test.labels[:60]
    with torch.no_grad():
        chosen = (classifier(images).argmax(1) == labels).nonzero()[:count, 0]
    return images[chosen], labels[chosen]


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
@pytest.mark.parametrize("part", STANDARD)
def test_every_part_stays_in_the_ball_and_leaves_modes_and_random_state_alone(part: str, threat: Threat) -> None:
    classifier = small_net()
    classifier.network.train()  # some modules in another mode than the rest
    classifier.network[3].eval()
    modes = [module.training for module in classifier.modules()]
    images, labels = right(classifier, 6)
    before, state = images.clone(), torch.get_rng_state()
    first, second = (run_attack(attack_by_name(part), classifier, images, labels, threat, seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in classifier.modules()] == modes
    assert torch.equal(images, before)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    adversarial, fooled = first
    assert bool(threat.contains(adversarial, images).all())
    assert torch.equal(fooled, classifier(adversarial).argmax(1) != labels)
    assert int(fooled.sum()) > 0


@pytest.mark.parametrize("part", STANDARD)
def test_no_part_leaves_gradients_on_the_weights(part: str) -> None:
    """A training loop that evaluates between `backward` and `step` must not take them for its own."""
    classifier = small_net()
    run_attack(attack_by_name(part), classifier, *right(classifier, 2), Linf(0.2), seed=0)
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize(
    ("part", "threat", "fewest", "most"),
    [
        ("apgd-ce", Linf(0.05), 1, 11),
        ("apgd-t", Linf(0.05), 1, 11),
        ("fab-t", Linf(0.05), 1, 11),
        ("square", Linf(0.2), 12, 12),
        ("apgd-ce", L2(0.4), 1, 11),
        ("apgd-t", L2(0.4), 1, 11),
        ("fab-t", L2(0.4), 1, 11),
        ("square", L2(2.0), 12, 12),
    ],
)
def test_every_part_has_the_verdicts_of_the_package_itself_by_images_that_it_visits(
    part: str, threat: Threat, fewest: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours stops at the first image that fools, where the package goes on: it has to be one on the package's own way."""
    classifier = small_net()
    images, labels = right(classifier, 12)
    original = AutoAttack(classifier, norm=threat.norm, eps=threat.eps, seed=5, version="standard", device="cpu")
    original.attacks_to_run = [part]
    # The package aims at 9 other classes by itself, where there are 3.
    original.apgd_targeted.n_target_classes = original.fab.n_target_classes = 3
    visited: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: visited.append(inputs[0].detach().clone()))
    with torch.random.fork_rng(devices=[]):
        _, predictions = original.run_standard_evaluation(images, labels, batch_size=12)
    handle.remove()
    # A target at a time, as the package: together, a later target may be the first to fool.
    monkeypatch.setattr(autoattack, "fab_targeted", lambda *given: fab_targeted(*given[:-1], 1))
    adversarial, fooled = run_attack(attack_by_name(part), classifier, images, labels, threat, seed=5)
    assert fooled.tolist() == (predictions != labels).tolist()
    assert fewest <= int(fooled.sum()) <= most
    distances = torch.cdist(adversarial[fooled].flatten(1), torch.cat(visited).flatten(1), p=torch.inf)
    assert float(distances.amin(1).amax()) <= 1e-5


def test_the_package_itself_reaches_the_same_verdicts_on_digits(trained: Callable[[str], Classifier]) -> None:
    classifier = trained("standard")
    images, labels = some_digits(classifier, 8)
    original = AutoAttack(classifier, norm="Linf", eps=0.12, seed=5, version="standard", device="cpu")
    original.attacks_to_run = ["apgd-ce"]
    with torch.random.fork_rng(devices=[]):
        _, predictions = original.run_standard_evaluation(images, labels, batch_size=8)
    _, fooled = run_attack(attack_by_name("apgd-ce"), classifier, images, labels, Linf(0.12), seed=5)
    assert fooled.tolist() == (predictions != labels).tolist()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("part", STANDARD)
def test_few_classes_are_attacked_as_well(part: str, classes: int) -> None:
    torch.manual_seed(0)
    # Without bias and around 0.5 an image's negative gets the negative logits: in a ball as large as the space
    # another class is always there to be found.
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=False))
    classifier = Classifier(network, mean=[0.5], std=[0.25]).eval()
    images, labels = right(classifier, 4)
    _, fooled = run_attack(attack_by_name(part), classifier, images, labels, Linf(1.0), seed=0)
    assert bool(fooled.all())


@pytest.mark.parametrize("part", STANDARD)
def test_a_single_image_is_attacked_as_well(part: str) -> None:
    classifier = small_net()
    images, labels = right(classifier, 1)
    adversarial, fooled = run_attack(attack_by_name(part), classifier, images, labels, Linf(0.2), seed=0)
    assert adversarial.shape == images.shape
    assert fooled.shape == (1,)


def test_the_standard_ensemble_breaks_a_standard_net_and_not_a_robust_one(
    trained: Callable[[str], Classifier],
) -> None:
    robust = {}
    for objective in ("standard", "aalp"):
        images, labels = some_digits(trained(objective), 6)
        evaluation = evaluate(trained(objective), images, labels, Linf(0.2), ["autoattack"])
        assert [part.name for part in evaluation.parts] == list(STANDARD)
        standing = torch.ones(6, dtype=torch.bool)
        for part in evaluation.parts:
            assert part.attacked == int(standing.sum())  # only survivors are attacked
            assert bool((part.standing <= standing).all())  # and none comes back
            standing = part.standing
        (whole,) = evaluation.results
        assert torch.equal(whole.standing, standing)
        assert whole.attacked == 6
        assert whole.seconds == pytest.approx(sum(part.seconds for part in evaluation.parts))
        robust[objective] = evaluation.robust_accuracy
    assert robust["standard"] == 0
    assert robust["aalp"] >= 0.25


def test_targets_together_have_the_verdicts_of_targets_one_by_one() -> None:
    classifier = small_net()
    images, labels = right(classifier, 12)
    seen = views(classifier, images)
    one, all_ = (classifier(fab_targeted(seen, images, labels, Linf(0.05), capacity)).argmax(1) for capacity in (1, 64))
    assert torch.equal(one != labels, all_ != labels)
    assert 1 <= int((one != labels).sum()) <= 11


@pytest.mark.parametrize("attack", [apgd_ce, lambda *given: apgd_targeted(*given, 64)], ids=["apgd-ce", "apgd-t"])
def test_what_only_the_rough_view_misclassifies_stays_in_the_search(attack: Callable[..., Tensor]) -> None:
    """Here the rough view calls everything wrong: no success may come of that, and none may be lost by it."""
    classifier = small_net()
    images, labels = right(classifier, 12)
    honest = views(classifier, images)

    def lying(images: Tensor) -> Tensor:
        logits = classifier(images)
        wrong = (logits.argmax(1) + 1) % 4
        return logits + 100 * nn.functional.one_hot(wrong, 4) if len(logits) > 0 else logits

    liar = Views(honest.judge, honest.steady, lying, is_rough=True)
    found = attack(liar, images, labels, Linf(0.05), 0)
    fooled = classifier(found).argmax(1) != labels
    assert torch.equal(found[~fooled], images[~fooled])  # a refused claim leaves no image
    assert 1 <= int(fooled.sum()) <= 11


@pytest.mark.parametrize("part", ["apgd-ce", "apgd-t"])
def test_a_search_in_bf16_breaks_what_float32_breaks(part: str) -> None:
    classifier = small_net()
    images, labels = right(classifier, 30)
    assert search_precision("bf16", classifier, images, Linf(0.05)) == "bf16"
    assert search_precision("float32", classifier, images, Linf(0.05)) == "float32"
    fooled = {}
    for search in ("bf16", "float32"):
        attack = attack_by_name(part, search)
        assert attack.settings["search"] == search
        _, fooled[search] = run_attack(attack, classifier, images, labels, Linf(0.05), seed=0)
    assert int((fooled["bf16"] != fooled["float32"]).sum()) <= 1
    assert 1 <= int(fooled["bf16"].sum()) <= 29


def test_square_passes_over_what_it_knows_and_reaches_the_same_images() -> None:
    """A network of 64 pixels has few single-pixel changes: most of the queries at that size need no pass."""
    classifier = small_net()
    images, labels = right(classifier, 3)
    seen, asked = views(classifier, images), 0

    def counted(images: Tensor) -> Tensor:
        nonlocal asked
        asked += len(images)
        return seen.steady(images)

    counting = Views(seen.judge, counted, counted, is_rough=False)
    quick = square_linf(counting, images, labels, 0.005, seed=3, queries=3000, capacity=64)
    original = AutoAttack(classifier, norm="Linf", eps=0.005, seed=3, version="standard", device="cpu").square
    original.n_queries = 3000
    original.init_hyperparam(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        _, theirs = original.attack_single_run(images, labels)
    torch.testing.assert_close(quick, theirs, rtol=0, atol=1e-6)
    assert asked < 3 * 3000 / 2


def test_exact_is_the_packages_own_standard_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ["apgd-ce", "apgd-t"]  # the two whose outcome hangs on the seed and on how images are batched
    monkeypatch.setattr("aalp.evaluation.robustness.STANDARD", parts)
    classifier = small_net(classes=10)
    images, labels = right(classifier, 7)
    original = AutoAttack(classifier, norm="Linf", eps=0.06, seed=11, version="standard", device="cpu")
    original.attacks_to_run = parts
    with torch.random.fork_rng(devices=[]):
        _, predictions = original.run_standard_evaluation(images, labels, batch_size=4)
    evaluation = evaluate(classifier, images, labels, Linf(0.06), ["autoattack"], batch_size=4, seed=11, exact=True)
    assert (evaluation.broken_by != 0).tolist() == (predictions != labels).tolist()
    assert int((predictions != labels).sum()) >= 1
    settings = evaluation.parts[0].settings
    assert (settings["by"], settings["search"], settings["package_seed"]) == ("pyautoattack", "float32", 11)


@pytest.mark.parametrize("part", ["autoattack", "apgd-t"])
def test_exact_says_that_the_package_needs_four_classes_before_any_attack(part: str) -> None:
    classifier = small_net(classes=3)

    def hours(_model: object, _images: Tensor, _labels: Tensor) -> Tensor:
        raise AssertionError("lost")

    with pytest.raises(OptionError, match="needs 4 classes and the model has 3"):
        evaluate(classifier, *right(classifier, 2), Linf(0.1), [hours, part], exact=True)


def test_square_goes_on_where_a_tie_is_still_right() -> None:
    images = torch.full((2, 1, 8, 8), 0.5)
    tied = torch.zeros(2, 2)
    search = _Square(Views(*[lambda points: tied[: len(points)]] * 3, False), images, torch.tensor([0, 1]), 0.2, images, 1)
    # Both classes have 0, and the first is what is predicted: right for the first image, wrong for the second.
    assert (search.margins > 0).tolist() == [True, False]


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_context: object, logits: Tensor) -> Tensor:
        return logits.round()

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        return gradient


class RoundsItsLogits(nn.Module):
    """Two classes that often tie, as in a quantised network, with a gradient that sees through the rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.logits = nn.Linear(64, 2), nn.Linear(2, 2, bias=False)
        self.logits.weight.data = torch.eye(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(_Rounded.apply(2 * self.body(images.flatten(1))))


def test_apgd_t_is_not_aimed_at_the_label_where_it_ties_with_another_class() -> None:
    torch.manual_seed(0)
    classifier, images = Classifier(RoundsItsLogits()), torch.rand(40, 1, 8, 8)
    with torch.no_grad():
        logits = classifier(images)
    images = images[logits[:, 0] == logits[:, 1]]
    assert len(images) >= 10
    labels = torch.zeros(len(images), dtype=torch.int64)
    evaluation = evaluate(classifier, images, labels, Linf(0.1), ["apgd-ce", "apgd-t"])
    assert evaluation.clean_accuracy == 1
    assert evaluation.results[1].accuracy <= evaluation.results[0].accuracy < 0.3
