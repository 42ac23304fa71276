"""The settings of the attack: the size of each step, and the attacks that have a name of their own."""

from __future__ import annotations

import pytest
import torch
from method_helpers import DIRECTIONS, TWO_CLASSES, linear_classifier, seeded

from aalp.method.pgd import AttackOptions, equal_step, perturb
from aalp.method.threat import Linf


def test_a_step_size_counts_in_pixel_units(grey):
    images, labels = grey
    adversarial = perturb(linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), 2, 0.03, random_start=0.0)
    torch.testing.assert_close(adversarial, images + 0.06 * DIRECTIONS.sign())


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (AttackOptions(1), [1.0]),
        (AttackOptions(2), [2.0, 1.0]),
        (AttackOptions(4), [2.0, 1.5, 1.0, 0.5]),
        (AttackOptions(10), [2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2]),
        (AttackOptions(3, step_size=0.1), [0.1, 0.1, 0.1]),
        (AttackOptions(1, step_size=1.25), [1.25]),
        # What nothing projects back takes equal steps of 2.5 / steps.
        (AttackOptions(5, project=False), [0.5] * 5),
    ],
)
def test_step_sizes_by_hand(options, sizes):
    assert options.step_sizes() == pytest.approx(sizes)


@pytest.mark.parametrize(("steps", "size"), [(1, 1.0), (2, 1.0), (5, 0.5), (10, 0.25), (20, 0.125)])
def test_equal_steps_by_hand(steps, size):
    assert equal_step(steps) == pytest.approx(size)


def test_each_step_has_its_size(grey):
    images, labels = grey
    seen = []
    # Nothing but the first pixel moves the logits; it starts in the middle, and rises at every step.
    classifier = linear_classifier([[0.0, 0, 0, 0], [1.0, 0, 0, 0]])
    options = {"random_start": 0.0, "observe": lambda at, _logits: seen.append(float(at[0, 0, 0, 0]))}
    perturb(classifier, images, labels, Linf(0.1), 3, 0.02, **options)
    assert seen == pytest.approx([0.5, 0.52, 0.54])
    seen.clear()

    def back_to_the_middle(logits, _labels):
        return -(logits[:, 1] - 0.5).abs()

    perturb(classifier, images + 0.01, labels, Linf(0.1), 4, loss=back_to_the_middle, **options)
    # From 0.51 by 0.2 (cut to the ball's 0.41), 0.15, 0.1, and 0.05 at last.
    assert seen == pytest.approx([0.51, 0.41, 0.56, 0.46])


def attack_with(options, classifier, images, labels, threat, generator):
    return perturb(
        classifier,
        images,
        labels,
        threat,
        options.steps,
        None if options.step_size is None else options.step_size * threat.eps,
        random_start=options.random_start,
        project=options.project,
        generator=generator,
    )


def test_fgsm_is_one_whole_step_from_the_clean_image(grey):
    images, labels = grey
    fgsm = AttackOptions(steps=1, random_start=0.0)
    adversarial = attack_with(fgsm, linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), None)
    torch.testing.assert_close(adversarial, images + 0.1 * DIRECTIONS.sign())


def test_fgsm_rs_is_one_long_step_from_a_random_start_cut_to_the_ball(grey):
    images, labels = grey
    fgsm_rs = AttackOptions(steps=1, step_size=1.25)
    adversarial = attack_with(fgsm_rs, linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), seeded(3))
    start = torch.empty_like(images).uniform_(-1, 1, generator=seeded(3)) * 0.1
    expected = images + (start + 0.125 * DIRECTIONS.sign()).clamp(-0.1, 0.1)
    torch.testing.assert_close(adversarial, expected)
    # Starts near the far corner do not come all the way: this is not PGD.
    assert ((adversarial - images).abs() < 0.099).any()


def test_n_fgsm_leaves_the_ball_by_its_noise_and_is_not_projected(grey):
    images, labels = grey
    n_fgsm = AttackOptions(steps=1, step_size=1.0, random_start=2.0, project=False)
    adversarial = attack_with(n_fgsm, linear_classifier(TWO_CLASSES), images, labels, Linf(0.1), seeded(3))
    start = torch.empty_like(images).uniform_(-1, 1, generator=seeded(3)) * 0.2
    torch.testing.assert_close(adversarial, images + start + 0.1 * DIRECTIONS.sign())
    assert 0.1 < (adversarial - images).abs().max() <= 0.3 + 1e-6
