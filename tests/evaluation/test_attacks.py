from __future__ import annotations

from collections.abc import Callable

import known_bad
import pytest
import torch
from torch import Tensor, nn

from aalp.errors import ModelError, OptionError
from aalp.evaluation.attacks import Attack, attack_by_name, run_attack
from aalp.evaluation.autoattack import STANDARD
from aalp.method.threat import L2, Linf, Threat
from aalp.models.classifier import Classifier

GRADIENT = ("fgsm", "pgd-1", "pgd-5", "cw-5")
THREATS = [Linf(0.1), L2(0.7)]


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """Five images that touch both ends of the range, and labels of four classes."""
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, :, 0], images[:, :, 1] = 0.0, 1.0
    return images, torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
@pytest.mark.parametrize("name", GRADIENT)
def test_every_attack_stays_in_the_ball_judges_by_the_model_and_depends_on_its_seed_alone(
    name: str, threat: Threat, batch: tuple[Tensor, Tensor], small_classifier: Callable[..., Classifier]
) -> None:
    classifier, (images, labels) = small_classifier(), batch
    attack, before = attack_by_name(name), images.clone()
    state = torch.get_rng_state()
    runs = [run_attack(attack, classifier, images, labels, threat, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    for adversarial, fooled in runs:
        assert bool(threat.contains(adversarial, images).all())
        assert torch.equal(fooled, classifier(adversarial).argmax(1) != labels)
    assert torch.equal(runs[0][0], runs[1][0])
    # FGSM starts at the image itself: it has nothing random in it.
    assert torch.equal(runs[0][0], runs[2][0]) == (name == "fgsm")
    assert not torch.equal(runs[0][0], images)


def test_fgsm_is_one_step_along_the_sign_of_the_gradient_by_hand() -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    classifier = Classifier(nn.Sequential(nn.Flatten(), linear)).eval()
    images = torch.tensor([[[[0.5, 0.25]]]])
    # The logit of the label 0 is x1 - 2 x2: it falls with x1 and rises with... so x1 goes down, x2 goes up.
    adversarial, _ = run_attack(attack_by_name("fgsm"), classifier, images, torch.tensor([0]), Linf(0.1), 0)
    torch.testing.assert_close(adversarial, torch.tensor([[[[0.4, 0.35]]]]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fgsm", {"steps": 1, "step_size_in_eps": 1.0, "random_start": 0.0, "loss": "cross-entropy"}),
        ("pgd-20", {"steps": 20, "step_size_in_eps": 0.125, "random_start": 1.0, "loss": "cross-entropy"}),
        ("pgd-1", {"steps": 1, "step_size_in_eps": 1.0, "random_start": 1.0, "loss": "cross-entropy"}),
        ("cw-40", {"steps": 40, "step_size_in_eps": 0.0625, "random_start": 1.0, "loss": "margin"}),
    ],
)
def test_settings_are_those_that_the_name_says(name: str, settings: dict[str, float | str]) -> None:
    assert dict(attack_by_name(name).settings) == settings


@pytest.mark.parametrize("name", ["", "pgd", "pgd-", "pgd-0", "pgd--3", "pgd-2.5", "cw-x", "fgsm-2", "APGD-CE", "pgd-²"])
def test_other_names_are_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(OptionError, match="known are apgd-ce, apgd-t, autoattack, clean, cw-40, fab-t, fgsm"):
        attack_by_name(name)


def test_the_parts_of_autoattack_are_attacks_of_their_own() -> None:
    assert [attack_by_name(name).name for name in STANDARD] == ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["fgsm", "pgd-2", "cw-2", *STANDARD])
def test_a_network_that_autograd_does_not_see_through_is_told_in_one_line(
    name: str, frozen: bool, small_classifier: Callable[..., Classifier]
) -> None:
    classifier = known_bad.without_graph(small_classifier(4)).requires_grad_(not frozen)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = classifier(images).argmax(1)
    attack = attack_by_name(name)
    if name == "square":
        assert len(run_attack(attack, classifier, images[:1], labels[:1], Linf(0.1), seed=0)[1]) == 1
        return
    with pytest.raises(ModelError, match=f"attack '{name}' finds no gradient: .* attack with square, which needs none"):
        run_attack(attack, classifier, images, labels, Linf(0.1), seed=0)


def test_other_errors_of_a_network_are_not_taken_for_a_missing_gradient(small_classifier: Callable[..., Classifier]) -> None:
    def fail(*_: object) -> Tensor:
        raise RuntimeError("out of memory")

    images, labels = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="out of memory"):
        run_attack(Attack("own", fail, {}), small_classifier(), images, labels, Linf(0.1), 0)


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
@pytest.mark.parametrize("value", [5.0, -5.0, torch.nan, torch.inf, -torch.inf])
def test_what_leaves_the_ball_or_is_no_number_is_brought_back_before_it_counts(
    value: float, threat: Threat, batch: tuple[Tensor, Tensor], small_classifier: Callable[..., Classifier]
) -> None:
    classifier, (images, labels) = small_classifier(), batch

    def cheat(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int) -> Tensor:
        candidates = images.clone()
        candidates[0] = value
        candidates[1, 0, 0, 0] = value
        return candidates

    adversarial, fooled = run_attack(Attack("cheat", cheat, {}), classifier, images, labels, threat, 0)
    assert bool(threat.contains(adversarial, images).all())
    assert torch.equal(adversarial[2:], images[2:])
    if not abs(value) < torch.inf:
        assert torch.equal(adversarial, images)
    assert torch.equal(fooled, classifier(adversarial).argmax(1) != labels)


def test_an_attack_in_less_precision_is_judged_in_float32(
    batch: tuple[Tensor, Tensor], small_classifier: Callable[..., Classifier]
) -> None:
    classifier, (images, labels) = small_classifier(), batch
    rough = Attack("rough", lambda classifier, images, *rest: (images + 0.1).bfloat16(), {})
    adversarial, _ = run_attack(rough, classifier, images, labels, Linf(0.1), 0)
    assert adversarial.dtype == torch.float32
    assert bool(Linf(0.1).contains(adversarial, images).all())
