"""The README's training loop on networks of torchvision, timm and ours: random weights, images of 32x32."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

import aalp
from aalp.models.small_cnn import SmallCNN

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]

NETWORKS = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=10),
    "torchvision vit_b_16": lambda: torchvision.models.vit_b_16(weights=None, image_size=32, num_classes=10),
    "torchvision convnext_tiny": lambda: torchvision.models.convnext_tiny(weights=None, num_classes=10),
    "timm resnet18": lambda: timm.create_model("resnet18", pretrained=False, num_classes=10),
    "timm vit_tiny": lambda: timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=10, img_size=32, patch_size=8
    ),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto", pretrained=False, num_classes=10),
}

OBJECTIVES = [aalp.AALP(), aalp.ALP(), aalp.AT(), aalp.TRADES(), aalp.MART(), aalp.CLP(), aalp.Standard()]


def batch(count):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 32, 32, generator=generator), torch.arange(count)


def start(parameter):
    """The first numbers of a parameter: a copy of all would cost more time than the training."""
    return parameter.detach().flatten()[:1000].clone()


def train_on(network, objective, count, batches, lr):
    """The loop of the README, with the checks that any use of it has to pass; the totals of its batches."""
    classifier = aalp.Classifier(network, mean=MEAN, std=STD)
    threat = aalp.Linf(8 / 255)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=lr)
    before = {name: start(value) for name, value in classifier.named_parameters()}
    images, labels = batch(count)
    totals = []
    for _ in range(batches):
        adversarial = aalp.perturb(classifier, images, labels, threat, steps=2, loss=objective.inner)
        assert threat.contains(adversarial, images).all()
        assert torch.equal(adversarial, images) == (objective.inner is None)
        loss = objective(classifier, images, adversarial, labels)
        loss.total.backward()
        for name, parameter in classifier.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        optimizer.step()
        optimizer.zero_grad()
        totals.append(loss.total.item())
        assert all(value.isfinite() for value in loss.parts.values())
        assert loss.logits.shape == (count, 10)
    assert classifier.training
    for name, parameter in classifier.named_parameters():
        assert parameter.isfinite().all(), name
    # A head that starts at zero (torchvision's ViT) passes no gradient on in the first batch: hence two batches at least.
    moved = [name for name, parameter in classifier.named_parameters() if not torch.equal(start(parameter), before[name])]
    assert len(moved) > 0.9 * len(before)
    classifier.eval()
    with torch.no_grad():
        logits = classifier(images)
        torch.testing.assert_close(classifier.head(classifier.features(images)), logits)
        assert logits.isfinite().all()
    return totals


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_objective_trains_a_small_network(objective):
    torch.manual_seed(0)
    totals = train_on(SmallCNN(10, (3, 32, 32)), objective, count=4, batches=8, lr=0.1)
    assert all(0 < total < float("inf") for total in totals)
    # The batch is the same every time: the loss on it has to fall, whatever masks were drawn.
    assert sum(totals[-2:]) < sum(totals[:2])


@pytest.mark.parametrize("name", NETWORKS)
def test_aalp_trains_real_networks(name):
    torch.manual_seed(0)
    totals = train_on(NETWORKS[name](), aalp.AALP(pairing_weight=0.5), count=2, batches=2, lr=0.01)
    assert all(0 < total < float("inf") for total in totals)


def test_a_model_kept_in_evaluation_mode_is_not_put_into_training():
    classifier = aalp.Classifier(SmallCNN(10, (3, 32, 32))).eval()
    images, labels = batch(2)
    objective = aalp.AALP()
    adversarial = aalp.perturb(classifier, images, labels, aalp.L2(0.5), steps=2, loss=objective.inner)
    objective(classifier, images, adversarial, labels)
    assert not any(module.training for module in classifier.modules())


@pytest.mark.parametrize("name", aalp.__all__)
def test_every_public_name_is_there(name):
    assert getattr(aalp, name).__module__.startswith("aalp.")


def test_a_name_that_is_not_public_is_missing_as_usual():
    with pytest.raises(AttributeError, match="module 'aalp' has no attribute 'AAPL'"):
        aalp.AAPL  # noqa: B018
