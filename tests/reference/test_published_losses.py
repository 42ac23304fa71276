"""TRADES, MART and ALP against plain renderings of the formulas that their authors published as code.

The renderings below are written from the papers and know nothing of aalp: two forward passes, the
reductions and the small constants of the originals. TRADES and ALP agree to float32 rounding. MART's code
adds 1e-4 inside a logarithm, 1e-7 to (1 - p_y) and 1e-12 to the probabilities, which aalp leaves out:
its tolerance is what those constants can do.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aalp.method.objectives import ALP, MART, TRADES
from aalp.models.classifier import Classifier
from aalp.models.preact_resnet import thin_resnet
from aalp.models.small_cnn import SmallCNN


def published_trades(network, images, adversarial, labels, beta):
    """TRADES (arXiv 1901.08573): CE(f(x), y) + beta / N * sum KL(softmax f(x), softmax f(x'))."""
    divergence = nn.KLDivLoss(reduction="sum")
    natural = F.cross_entropy(network(images), labels)
    robust = divergence(F.log_softmax(network(adversarial), dim=1), F.softmax(network(images), dim=1)) / len(images)
    return natural + beta * robust


def published_mart(network, images, adversarial, labels, beta):
    """MART (ICLR 2020): CE(z', y) + NLL(log(1.0001 - p'), strongest wrong class) + beta / N * sum KL (1.0000001 - p_y)."""
    logits_adversarial, logits = network(adversarial), network(images)
    probabilities_adversarial = F.softmax(logits_adversarial, dim=1)
    two_largest = torch.argsort(probabilities_adversarial, dim=1)[:, -2:]
    rival = torch.where(two_largest[:, -1] == labels, two_largest[:, -2], two_largest[:, -1])
    boosted = F.cross_entropy(logits_adversarial, labels) + F.nll_loss(
        torch.log(1.0001 - probabilities_adversarial + 1e-12), rival
    )
    probabilities = F.softmax(logits, dim=1)
    true_probability = torch.gather(probabilities, 1, labels.unsqueeze(1)).squeeze(1)
    divergence = F.kl_div(torch.log(probabilities_adversarial + 1e-12), probabilities, reduction="none").sum(dim=1)
    robust = (divergence * (1.0000001 - true_probability)).sum() / len(images)
    return boosted + beta * robust


def published_alp(network, images, adversarial, labels, weight):
    """ALP (arXiv 1803.06373): cross-entropy of the mixed batch plus weight * mean squared difference of the logits."""
    clean, attacked = network(images), network(adversarial)
    return F.cross_entropy(torch.cat([clean, attacked]), torch.cat([labels, labels])) + weight * F.mse_loss(clean, attacked)


CASES = {
    "trades": (TRADES, published_trades, {"beta": 6.0}, 1e-5),
    "trades-1": (TRADES, published_trades, {"beta": 1.0}, 1e-5),
    # log(1.0001 - p) - log(1 - p) is 1e-4 / (1 - p); p stays below 0.9 here, so 1e-3 covers it, and so for the gradient.
    "mart": (MART, published_mart, {"beta": 5.0}, 1e-3),
    "mart-6": (MART, published_mart, {"beta": 6.0}, 1e-3),
    "alp": (ALP, published_alp, {"pairing_weight": 0.5}, 1e-5),
    "alp-1": (ALP, published_alp, {"pairing_weight": 1.0}, 1e-5),
}

NETWORKS = {"small-cnn": lambda: SmallCNN(5, (1, 8, 8), hidden=20), "thin-resnet": lambda: thin_resnet(5, 1)}


def total_and_gradients(classifier, total_of, images, adversarial):
    """The total, its gradients to both images, and to every weight by name."""
    images, adversarial = (batch.clone().requires_grad_() for batch in (images, adversarial))
    total = total_of(images, adversarial)
    total.backward()
    weights = {name: parameter.grad for name, parameter in classifier.named_parameters()}
    return total.detach(), {"images": images.grad, "adversarial": adversarial.grad} | weights


def scenario(network, dtype=torch.float32):
    """A classifier in evaluation mode, as two forward passes have other batch statistics than one, and a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        classifier = Classifier(NETWORKS[network](), mean=[0.5], std=[0.25]).to(dtype).eval()
        with torch.no_grad():
            # Larger weights in the head: predictions that differ from 1/5 and from image to image.
            classifier.linear.weight.mul_(6)
        images = torch.rand(10, 1, 8, 8, dtype=dtype)
        adversarial = (images + 0.2 * torch.randn(images.shape, dtype=dtype)).clamp(0, 1)
    return classifier, images, adversarial, torch.arange(10) % 5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("case", CASES)
def test_totals_and_gradients_are_those_of_the_published_formula(case, network):
    objective, published, numbers, tolerance = CASES[case]
    classifier, images, adversarial, labels = scenario(network)
    reference = copy.deepcopy(classifier)
    total, gradients = total_and_gradients(
        classifier, lambda x, x2: objective(**numbers)(classifier, x, x2, labels).total, images, adversarial
    )
    expected, expected_gradients = total_and_gradients(
        reference, lambda x, x2: published(reference, x, x2, labels, *numbers.values()), images, adversarial
    )
    assert reference(adversarial).softmax(1).max() < 0.9
    assert objective(**numbers)(classifier, images, adversarial, labels).parts.keys() >= {"classification"}
    torch.testing.assert_close(total, expected, atol=0, rtol=tolerance)
    for name, gradient in gradients.items():
        # Relative to the size of the whole gradient: single entries may cancel to anything.
        difference = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert difference < 3 * tolerance, name


@pytest.mark.parametrize("case", ["trades", "alp"])
def test_float64_totals_agree_to_float64_rounding(case):
    objective, published, numbers, _ = CASES[case]
    classifier, images, adversarial, labels = scenario("small-cnn", torch.float64)
    total = objective(**numbers)(classifier, images, adversarial, labels).total
    torch.testing.assert_close(total, published(classifier, images, adversarial, labels, *numbers.values()), atol=0, rtol=1e-12)


def test_float64_mart_differs_by_its_constants_alone():
    classifier, images, adversarial, labels = scenario("small-cnn", torch.float64)
    total = MART(beta=5.0)(classifier, images, adversarial, labels).total
    published = published_mart(classifier, images, adversarial, labels, 5.0)
    with torch.no_grad():
        others = classifier(adversarial).softmax(1).scatter(1, labels[:, None], 0.0)
        # What 1e-4 adds to the logarithm, and 1e-7 to the weight of a divergence, which are below 2 each here.
        constant = (torch.log(1.0001 - others.amax(1)) - torch.log(1 - others.amax(1))).mean()
    assert constant > 1e-5
    torch.testing.assert_close(total - constant, published, atol=5e-6, rtol=0)


def test_mart_stays_finite_and_keeps_its_slope_where_the_constant_of_the_code_takes_over():
    """z = (0, 30), label 0: 1 - p_1 rounds to 0 in float32; the term rises by 1 + 1 a unit of z_1, the code's by about 1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
    image, label = torch.tensor([[[[0.0, 30.0]]]]), torch.tensor([0])

    def slope(total_of):
        moved = image.clone().requires_grad_()
        total_of(moved).backward()
        return moved.grad.flatten()[1].item()

    classifier = Classifier(network)
    assert slope(lambda x: MART(beta=0.0)(classifier, image, x, label).total) == pytest.approx(2.0, abs=1e-5)
    assert slope(lambda x: published_mart(network, image, x, label, 0.0)) == pytest.approx(1.0, abs=1e-3)
