"""Attacks that follow no gradient of the model: random noise, and images transferred from a stand-in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adam import adam

from aalp.method.losses import margin
from aalp.method.pgd import equal_step, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.models.small_cnn import SmallCNN

STAND_IN_SIZE = 32
"""Larger images are shrunk for the stand-in, which keeps its cost the same."""


@torch.no_grad()
def random_noise(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int, draws: int) -> Tensor:
    """For each image the worst of `draws` random points on the ball's surface (corners, in Linf), cut to [0, 1]."""
    generator = torch.Generator(images.device).manual_seed(seed)
    worst, worst_margin = images.clone(), margin(classifier(images), labels)
    for _ in range(draws):
        direction = torch.empty_like(images).normal_(generator=generator)
        points = threat.project(images + threat.eps * threat.steepest_step(direction), images)
        margins = margin(classifier(points), labels)
        better = margins > worst_margin
        worst[better], worst_margin[better] = points[better], margins[better]
    return worst


def train_stand_in(classifier: Classifier, images: Tensor, threat: Threat, seed: int, steps: int) -> Classifier:
    """A small CNN that has learnt the model's answers on the images and on noisy ones around them.

    Labels only, as in Papernot et al. (arXiv 1602.02697): what the model does to its logits does not matter.
    """
    channels, *size = images.shape[1:]
    side = [min(STAND_IN_SIZE, max(4, length)) for length in size]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.Generator(images.device).manual_seed(seed)
    # `manual_seed` seeds every device; what others draw on this one goes on as it was.
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), torch.enable_grad():
        torch.manual_seed(seed)
        network = SmallCNN(classifier.num_classes, (channels, side[0], side[1]))
        mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp_min(1 / 255)
        stand_in = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d((side[0], side[1])), network), mean.tolist(), std.tolist())
        stand_in.to(images.device)
        parameters: list[Tensor] = [*stand_in.parameters()]
        # The optimizer's own function: its class imports torch's compiler, which takes longer than this whole training.
        means, squares = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
        counts = [torch.tensor(0.0) for _ in parameters]
        for _ in range(steps):
            rows = torch.randint(len(images), (min(64, len(images)),), generator=generator).to(images.device)
            batch = threat.project(threat.random_start(images[rows], noise), images[rows])
            with torch.no_grad():
                answers = classifier(batch).argmax(1)
            gradients = torch.autograd.grad(F.cross_entropy(stand_in(batch), answers), parameters)
            with torch.no_grad():
                adam(
                    *(parameters, list(gradients), means, squares, [], counts),
                    lr=2e-3,
                    beta1=0.9,
                    beta2=0.999,
                    eps=1e-8,
                    weight_decay=0.0,
                    amsgrad=False,
                    maximize=False,
                )
    return stand_in.eval().requires_grad_(False)


def transfer(stand_in: Classifier, images: Tensor, labels: Tensor, threat: Threat, seed: int, steps: int) -> Tensor:
    """PGD on the stand-in's margin: the model itself is not asked."""
    generator = torch.Generator(images.device).manual_seed(seed)
    return perturb(stand_in, images, labels, threat, steps, equal_step(steps) * threat.eps, margin, generator=generator)
