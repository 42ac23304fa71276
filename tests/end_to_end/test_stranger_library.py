"""A stranger's plain training loop: a timm ViT, trained the ordinary way before, tuned against PGD with the library's API."""

from __future__ import annotations

import timm
import torch
from torch.nn import functional as F

import aalp

EPS = 16 / 255


def stripes(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 16, 16) with a bright stripe in one of four places, and which."""
    labels = torch.arange(count) % 4
    images = 0.3 * torch.rand(count, 3, 16, 16, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 0.35
    return images, labels


def test_a_vit_becomes_robust_in_a_plain_loop() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = stripes(128, generator)
    test_images, test_labels = stripes(64, generator)
    vit = timm.create_model("test_vit", num_classes=4, img_size=16, patch_size=4, depth=2)
    config = timm.data.resolve_model_data_config(vit)
    classifier = aalp.Classifier(vit, mean=config["mean"], std=config["std"])
    assert classifier.head_name == "head"

    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    for _ in range(12):
        F.cross_entropy(classifier(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    threat = aalp.Linf(EPS)
    before = aalp.evaluate(classifier.eval(), test_images, test_labels, threat, attacks=("pgd-10",))

    objective = aalp.AALP(dropout=aalp.GuidedDropout(ramp=0))
    for step in range(15):
        classifier.train()
        adversarial = aalp.perturb(classifier, images, labels, threat, steps=3, loss=objective.inner, generator=generator)
        loss = objective(classifier, images, adversarial, labels, progress=step / 15, generator=generator)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = aalp.evaluate(classifier.eval(), test_images, test_labels, threat, attacks=("pgd-10",))

    assert before.clean_accuracy >= 0.9
    assert after.clean_accuracy >= 0.9
    assert after.robust_accuracy >= max(0.5, before.robust_accuracy + 0.1), (before.robust_accuracy, after.robust_accuracy)
