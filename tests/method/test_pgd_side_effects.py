"""What an attack leaves as it found it, and what decides it: modes, gradients, statistics, random numbers."""

from __future__ import annotations

import pytest
import torch
from method_helpers import seeded

from aalp.method import losses
from aalp.method.objectives import TRADES
from aalp.method.pgd import AgainstClean, perturb
from aalp.method.threat import L2, Linf


def test_without_a_loss_the_images_come_back(normed_classifier, noise_images):
    images, labels = noise_images
    assert torch.equal(perturb(normed_classifier, images, labels, Linf(0.1), loss=None), images)


@pytest.mark.parametrize("loss", [losses.cross_entropy, TRADES().inner])
def test_the_images_stay_and_the_result_carries_no_graph(normed_classifier, noise_images, loss):
    images, labels = noise_images
    images = images.clone().requires_grad_()
    before = images.detach().clone()
    adversarial = perturb(normed_classifier, images, labels, Linf(0.1), 2, loss=loss)
    assert torch.equal(images, before)
    assert images.grad is None
    assert not adversarial.requires_grad
    assert adversarial.grad_fn is None
    assert not torch.equal(adversarial, before)


def modes(classifier):
    return {name: module.training for name, module in classifier.named_modules()}


def mixed_modes(classifier):
    """Training, but with the BatchNorm frozen: what has to come back is each module's own mode."""
    classifier.train()
    classifier.network[1].eval()
    return modes(classifier)


@pytest.mark.parametrize("prepare", [lambda c: modes(c.train()), lambda c: modes(c.eval()), mixed_modes])
def test_each_module_gets_its_mode_back(normed_classifier, noise_images, prepare):
    before = prepare(normed_classifier)
    perturb(normed_classifier, *noise_images, Linf(0.1), 2)
    assert modes(normed_classifier) == before


@pytest.mark.parametrize("against_clean", [False, True])
def test_each_module_gets_its_mode_back_when_the_loss_raises(normed_classifier, noise_images, against_clean):
    seen = []

    def broken(logits, labels):
        seen.append(any(modes(normed_classifier).values()))
        raise ArithmeticError("a broken loss")

    before = mixed_modes(normed_classifier)
    with pytest.raises(ArithmeticError, match="a broken loss"):
        perturb(normed_classifier, *noise_images, Linf(0.1), 2, loss=AgainstClean(broken) if against_clean else broken)
    assert seen == [False]
    assert modes(normed_classifier) == before


@pytest.mark.parametrize("loss", [losses.cross_entropy, TRADES().inner])
def test_weights_get_no_gradient_and_statistics_do_not_move(normed_classifier, noise_images, loss):
    normed_classifier.train()
    state = {name: value.clone() for name, value in normed_classifier.state_dict().items()}
    perturb(normed_classifier, *noise_images, Linf(0.1), 3, loss=loss)
    assert all(parameter.grad is None for parameter in normed_classifier.parameters())
    assert all(parameter.requires_grad for parameter in normed_classifier.parameters())
    for name, value in normed_classifier.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_gradients_that_are_already_there_stay(normed_classifier, noise_images):
    images, labels = noise_images
    losses.cross_entropy(normed_classifier(images), labels).mean().backward()
    before = [parameter.grad.clone() for parameter in normed_classifier.parameters()]
    perturb(normed_classifier, images, labels, Linf(0.1), 2)
    for parameter, gradient in zip(normed_classifier.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("ball", [Linf, L2])
@pytest.mark.parametrize("training", [True, False])
def test_a_generator_decides_the_attack_alone(ball, normed_classifier, noise_images, training):
    normed_classifier.train(training)
    normed_classifier(noise_images[0])
    state = torch.get_rng_state()
    first, again, other = (
        perturb(normed_classifier, *noise_images, ball(0.2), 2, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_is_attacked_alike_alone_and_in_a_batch(normed_classifier, noise_images):
    images, labels = noise_images
    together = perturb(normed_classifier, images, labels, L2(0.5), 3, random_start=0.0)
    for index in range(len(images)):
        part = slice(index, index + 1)
        alone = perturb(normed_classifier, images[part], labels[part], L2(0.5), 3, random_start=0.0)
        torch.testing.assert_close(alone, together[part], atol=1e-5, rtol=0)


def test_an_attack_works_where_gradients_are_switched_off(normed_classifier, noise_images):
    with torch.no_grad():
        quiet = perturb(normed_classifier, *noise_images, Linf(0.1), 2, generator=seeded())
    assert torch.equal(quiet, perturb(normed_classifier, *noise_images, Linf(0.1), 2, generator=seeded()))
