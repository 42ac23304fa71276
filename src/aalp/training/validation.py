"""How well a network in training does on the images held out: what its best epoch is chosen by."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from aalp.data.loaders import Loader
from aalp.distributed import Ranks
from aalp.method.pgd import evaluating, perturb
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.models.folding_in_place import folded_norms
from aalp.seeding import derive_seed, seed_global_generators


def accuracies(
    classifier: Classifier, validation: Loader, threat: Threat, steps: int, seed: int, fabric: Fabric, ranks: Ranks
) -> tuple[float, float]:
    """Clean accuracy and accuracy under PGD of so many steps, in [0, 1]; 0, 0 without any images. Together."""
    clean = robust = 0
    # Whole batches to each rank: what is judged together, and with which random starts, is as in one process.
    numbers = range(ranks.rank, len(validation), ranks.size)
    for number, (images, labels) in zip(numbers, validation.batches(start=ranks.rank, every=ranks.size), strict=False):
        batch_seed = derive_seed("validation", seed, number)
        generator = torch.Generator(fabric.device).manual_seed(batch_seed)
        seed_global_generators(batch_seed)
        with evaluating(classifier), folded_norms(classifier), fabric.autocast():
            adversarial = perturb(classifier, images, labels, threat, steps, generator=generator)
            with torch.no_grad():
                right = classifier(images).argmax(1) == labels
                holds = classifier(adversarial).argmax(1) == labels
        clean += int(right.sum())
        robust += int((right & holds).sum())
    clean, robust = ranks.total(clean, robust)
    count = max(1, len(validation.split))
    return clean / count, robust / count
