"""The inner loop: what it finds, what it must never leave, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_helpers import DIRECTIONS, TWO_CLASSES, linear_classifier, pixels, seeded

from aalp.errors import DataError, OptionError
from aalp.method import losses
from aalp.method.objectives import TRADES
from aalp.method.pgd import AgainstClean, AttackOptions, perturb
from aalp.method.threat import L2, Linf

BOTH = pytest.mark.parametrize("ball", [Linf, L2])


@pytest.mark.parametrize("steps", [1, 3, 10, 40])
def test_a_linear_model_is_attacked_to_its_exact_linf_optimum(grey, steps):
    images, labels = grey
    adversarial = perturb(linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), steps, random_start=0.0)
    torch.testing.assert_close(adversarial, images + 0.1 * DIRECTIONS.sign())


@pytest.mark.parametrize("random_start", [0.0, 1.0])
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
def test_an_image_that_the_network_is_sure_of_is_attacked_in_float16_too(loss, random_start):
    """The probability of class 1 is exp(-20) = 2e-9, and the least that float16 holds 6e-8."""
    images, labels = pixels([0.5, 0.5, 0.5, 0.5]), torch.tensor([0])
    sure = linear_classifier(TWO_CLASSES, [20.0, 0.0])
    with torch.autocast("cpu", torch.float16):
        adversarial = perturb(sure, images, labels, Linf(0.1), 3, loss=loss, random_start=random_start, generator=seeded())
    torch.testing.assert_close(adversarial, images + 0.1 * DIRECTIONS[:1].sign())


def test_the_linf_optimum_is_found_from_every_random_start(grey):
    # The first step goes 2 eps: from any corner of the cube to the opposite one.
    images, labels = grey
    for seed in range(5):
        adversarial = perturb(linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), 10, generator=seeded(seed))
        torch.testing.assert_close(adversarial, images + 0.1 * DIRECTIONS.sign())


def test_the_linf_optimum_is_cut_at_the_edges_of_the_pixel_range():
    images, labels = pixels([0.0, 0.0, 1.0, 0.95]), torch.tensor([0])
    # The signs for label 0 are (+, -, +, -).
    adversarial = perturb(linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), 10)
    torch.testing.assert_close(adversarial, pixels([0.1, 0.0, 1.0, 0.85]))


def test_a_linear_model_is_attacked_to_its_exact_l2_optimum(grey):
    images, labels = grey
    adversarial = perturb(linear_classifier(TWO_CLASSES), images, labels, L2(0.3), 4, random_start=0.0)
    # The step's direction is the rise divided by its length, 5.
    torch.testing.assert_close(adversarial, images + 0.3 * DIRECTIONS / 5)


def test_the_l2_optimum_is_neared_from_a_random_start(grey):
    images, labels = grey
    adversarial = perturb(linear_classifier(TWO_CLASSES), images, labels, L2(0.3), 40, 0.1, generator=seeded())
    torch.testing.assert_close(adversarial, images + 0.3 * DIRECTIONS / 5, atol=1e-4, rtol=0)


@BOTH
@given(
    eps=st.floats(1e-3, 2.0),
    steps=st.integers(1, 4),
    step=st.none() | st.floats(0.01, 4.0),
    start=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    images=st.sampled_from(["black", "white", "edges", "grey"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_ball_is_never_left(ball, eps, steps, step, start, images, seed):
    random, eps = seeded(seed), min(eps, 1.0) if ball is Linf else eps
    shape = (3, 1, 2, 3)
    clean = {
        "black": torch.zeros(shape),
        "white": torch.ones(shape),
        "edges": torch.randint(0, 2, shape, generator=random).float(),
        "grey": torch.rand(shape, generator=random),
    }[images]
    classifier = linear_classifier(torch.randn(3, 6, generator=random).tolist())
    adversarial = perturb(
        classifier,
        clean,
        torch.tensor([0, 1, 2]),
        ball(eps),
        steps,
        None if step is None else step * eps,
        random_start=start,
        generator=random,
    )
    assert (adversarial >= 0).all()
    assert (adversarial <= 1).all()
    change = (adversarial.double() - clean.double()).flatten(1)
    distance = change.abs().amax(1) if ball is Linf else change.square().sum(1).sqrt()
    assert (distance <= eps + 1e-6).all()


@BOTH
@pytest.mark.parametrize("start", [1.0, 3.0])
def test_gradients_are_taken_inside_the_ball_only(ball, start, noise_images, small_classifier):
    images, labels = noise_images
    images = images.round()
    classifier, seen = small_classifier(), []
    classifier.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0].detach()))
    perturb(classifier, images, labels, ball(0.2), 3, random_start=start, generator=seeded())
    assert len(seen) == 3
    assert all(ball(0.2).contains(candidates, images).all() for candidates in seen)


@BOTH
def test_a_stronger_attack_raises_the_loss(ball, small_classifier):
    classifier = small_classifier()
    images, labels = torch.rand(12, 1, 8, 8, generator=seeded()), torch.arange(12) % 4
    eps = 0.1 if ball is Linf else 0.5

    def loss(threat, steps):
        adversarial = perturb(classifier, images, labels, threat, steps, random_start=0.0)
        return losses.cross_entropy(classifier(adversarial), labels).mean().item()

    clean = losses.cross_entropy(classifier(images), labels).mean().item()
    one, many, wider = loss(ball(eps), 1), loss(ball(eps), 8), loss(ball(2 * eps), 8)
    assert clean < one < many < wider


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.boosted_cross_entropy, losses.margin])
def test_every_image_has_a_higher_loss_under_the_loss_that_was_maximised(loss, small_classifier):
    classifier = small_classifier()
    images, labels = torch.rand(12, 1, 8, 8, generator=seeded()), torch.arange(12) % 4
    adversarial = perturb(classifier, images, labels, Linf(0.1), 10, loss=loss, generator=seeded())
    with torch.no_grad():
        assert (loss(classifier(adversarial), labels) > loss(classifier(images), labels)).all()


def test_trades_attacks_the_distance_from_the_clean_prediction_and_asks_for_no_label(small_classifier):
    classifier = small_classifier()
    images, labels = torch.rand(16, 1, 8, 8, generator=seeded()), torch.arange(16) % 4
    inner = TRADES().inner
    adversarial = perturb(classifier, images, labels, Linf(0.5), 5, loss=inner, generator=seeded(1))
    relabelled = perturb(classifier, images, (labels + 1) % 4, Linf(0.5), 5, loss=inner, generator=seeded(1))
    assert torch.equal(adversarial, relabelled)
    start = Linf(0.5).random_start(images, seeded(1)).clamp(0, 1)
    with torch.no_grad():
        clean = classifier(images)
        # In a ball so large the divergence of an untrained network is far above what rounding makes of it.
        reached = losses.kl_divergence(clean, classifier(adversarial))
        assert (reached > losses.kl_divergence(clean, classifier(start))).all()


def test_trades_first_step_by_hand():
    # d KL(p, p') / d z' = p' - p, so the step of a linear model is eps sign(W^T (p' - p)).
    weight = torch.tensor(TWO_CLASSES)
    images, labels = pixels([0.2, 0.4, 0.6, 0.8]), torch.tensor([0])
    start = torch.empty_like(images).uniform_(-1, 1, generator=seeded(5)) * 0.1
    clean, moved = ((weight @ row.flatten()).softmax(0) for row in (images, images + start))
    expected = (start + 0.1 * ((moved - clean) @ weight).sign()).clamp(-0.1, 0.1) + images
    adversarial = perturb(
        linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), 1, loss=TRADES().inner, generator=seeded(5)
    )
    torch.testing.assert_close(adversarial, expected)


def test_a_comparison_with_the_clean_logits_does_not_start_where_it_has_no_gradient(grey):
    with pytest.raises(OptionError, match=r"random_start is 0 and .* start at random"):
        perturb(linear_classifier(TWO_CLASSES), *grey, Linf(0.1), loss=TRADES().inner, random_start=0)


def test_the_clean_side_of_a_comparison_is_the_evaluation_mode_prediction_without_gradient(normed_classifier, noise_images):
    normed_classifier.train()
    seen = []

    def divergence(clean, logits):
        seen.append(clean)
        return (logits - clean).square().sum(1)

    perturb(normed_classifier, *noise_images, Linf(0.1), 2, loss=AgainstClean(divergence))
    expected = normed_classifier.eval()(noise_images[0])
    assert len(seen) == 2
    for clean in seen:
        torch.testing.assert_close(clean, expected.detach())
        assert not clean.requires_grad


def test_an_attack_through_a_mask_does_not_see_what_the_mask_drops(grey):
    images, labels = grey
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 2.0, 1.0, 1.0]])
    adversarial = perturb(linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), 3, random_start=0.0, mask=mask)
    # The features of this classifier are the pixels: where the factor is 0 the gradient is 0, and no step is made.
    torch.testing.assert_close(adversarial, images + 0.1 * (DIRECTIONS * mask[:, None, None, :]).sign())


def test_a_comparison_through_a_mask_masks_both_sides():
    images, labels = pixels([0.2, 0.4, 0.6, 0.8]), torch.tensor([0])
    mask = torch.tensor([[2.0, 0.0, 1.0, 0.0]])
    seen = []

    def divergence(clean, logits):
        seen.append(clean)
        return losses.kl_divergence(clean, logits)

    classifier = linear_classifier(TWO_CLASSES)
    perturb(classifier, images, labels, Linf(0.1), 1, loss=AgainstClean(divergence), mask=mask)
    # Masked pixels (0.4, 0, 0.6, 0): z_0 = 0.4 - 1.2 = -0.8 and z_1 = 0.8 + 1.2 = 2.
    torch.testing.assert_close(seen[0], torch.tensor([[-0.8, 2.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps is 0: .*at least 1"),
        ({"steps": -3}, r"steps is -3: .*at least 1"),
        ({"step_size": 0.0}, r"step_size is 0\.0: .*positive number"),
        ({"step_size": -0.1}, r"step_size is -.*: .*positive number"),
        ({"step_size": float("nan")}, r"step_size is nan: .*positive number"),
        ({"step_size": float("inf")}, r"step_size is inf: .*positive number"),
        ({"random_start": -1.0}, r"random_start is -1\.0: .*at least 0"),
        ({"random_start": float("inf")}, r"random_start is inf: .*at least 0"),
        ({"random_start": float("nan")}, r"random_start is nan: .*at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(grey, options, message):
    with pytest.raises(OptionError, match=message):
        AttackOptions(**options)
    with pytest.raises(OptionError, match=message):
        perturb(linear_classifier(TWO_CLASSES), *grey, Linf(0.1), **options)


def test_an_observer_sees_every_point_that_a_gradient_is_taken_at_and_changes_nothing(small_classifier):
    classifier = small_classifier(3)
    images, labels = torch.rand(4, 1, 8, 8, generator=seeded(0)), torch.tensor([0, 1, 2, 0])
    points = []

    def look(at, logits):
        assert not at.requires_grad
        assert torch.equal(logits, classifier(at).detach())
        points.append(at.clone())

    watched = perturb(classifier, images, labels, Linf(0.1), 3, generator=seeded(1), observe=look)
    assert torch.equal(watched, perturb(classifier, images, labels, Linf(0.1), 3, generator=seeded(1)))
    assert len(points) == 3
    assert bool(Linf(0.1).contains(points[0], images).all())
    # The last point is one step before the result.
    assert 0 < (watched - points[-1]).abs().amax() <= 0.1 * 2.5 / 3 + 1e-6


@pytest.mark.parametrize(
    ("change", "shown"),
    [(lambda images: (images - 0.5) / 0.25, r"\[-1.9"), (lambda images: images * 255, r"\[2.*, 25")],
    ids=["normalised", "0..255"],
)
def test_images_outside_the_pixel_range_are_refused_instead_of_cut(change, shown, normed_classifier, noise_images):
    images, labels = noise_images
    with pytest.raises(DataError, match=rf"pixel values in {shown}.*: scale them to \[0, 1\], .* mean="):
        perturb(normed_classifier, change(images), labels, Linf(0.1), 2)


def test_pixels_that_are_out_of_range_by_rounding_are_images(normed_classifier, noise_images):
    images, labels = noise_images
    adversarial = perturb(normed_classifier, images.clamp_min(1 + 2e-7), labels, Linf(0.1), 2)
    assert adversarial.max() <= 1


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), r"images are torch.uint8: .*images.float\(\) / 255"),
        (torch.zeros(2, 1, 8, 8), [0, 1], "labels are of type list"),
        (torch.zeros(2, 1, 8, 8), torch.eye(3)[:2], "labels.argmax"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 1, 2]), "2 images and 3 labels"),
    ],
)
@pytest.mark.parametrize("loss", [losses.cross_entropy, TRADES().inner])
def test_what_is_no_batch_is_refused(images, labels, message, loss, normed_classifier):
    with pytest.raises(DataError, match=message):
        perturb(normed_classifier, images, labels, Linf(0.1), 2, loss=loss)


@pytest.mark.parametrize("loss", [losses.cross_entropy, TRADES().inner])
def test_an_attack_under_inference_mode_is_the_same_attack(loss, normed_classifier, noise_images):
    mask = torch.ones(6, 144)
    outside = perturb(normed_classifier, *noise_images, Linf(0.1), 3, loss=loss, mask=mask, generator=seeded())
    with torch.inference_mode():
        images, labels, mask = (tensor.clone() for tensor in (*noise_images, mask))
        inside = perturb(normed_classifier, images, labels, Linf(0.1), 3, loss=loss, mask=mask, generator=seeded())
        assert torch.is_inference_mode_enabled()
    assert inside.equal(outside)


@pytest.mark.parametrize(("threat", "shown"), [(None, "missing"), (0.1, "0.1"), ("Linf", "'Linf'"), (Linf, "<class")])
def test_what_is_no_threat_is_refused(threat, shown, normed_classifier, noise_images):
    with pytest.raises(OptionError, match=rf"threat is {shown}.*: give one, such as Linf\(8 / 255\)"):
        perturb(normed_classifier, *noise_images, threat)
