"""Observation 2 (arXiv 2005.11904): the pairing loss does not suit all samples, and where it does not, it obstructs
the classification loss.

Three measures of "obstructs" (docs/analysis.md has the proofs). At the adversarial logits z' the pairing pulls towards
z; cross-entropy is convex, so that this works against CE(z', y) only where the attack *lowered* the loss. At the clean
logits z it pulls towards z', and may work against CE(z, y) anywhere. On both logits together it never works against
the sum of both cross-entropies: only in the network's weights, which all samples and both images share, can the two
losses as a whole conflict.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from aalp.analysis.pairs import Pairs
from aalp.method.losses import cross_entropy, logit_pairing
from aalp.method.sample_weights import conflict_cosine
from aalp.models.classifier import Classifier


def pair_measures(pairs: Pairs) -> dict[str, Tensor]:
    """Per image (N,): cosine of the losses' gradients at the adversarial and at the clean logits, pairing loss."""
    clean, adversarial = pairs.clean.logits, pairs.adversarial.logits
    return {
        "conflict_cosine": conflict_cosine(clean, adversarial, pairs.labels),
        "conflict_cosine_clean": conflict_cosine(adversarial, clean, pairs.labels),
        # In float64: squares of a runaway model's logits do not fit float32.
        "pairing_distance": logit_pairing(clean.double(), adversarial.double()),
    }


def summarise(pairs: Pairs, weight_cosines: Tensor) -> dict[str, float | None]:
    """Observation 2 on these pairs.

    Args:
        weight_cosines: (M,) what `weight_conflict` gave for some of the images; those that are not finite are left out.

    Returns:
        Conflict rates at the adversarial logits (`rate`), at the clean logits and in the weights; the share of images
        that are misclassified clean, and the share of the pairing loss that they carry; the share of the pairing loss
        that the tenth of the images with the largest one carry. None where that is no number.
    """
    measures = pair_measures(pairs)
    pairing, wrong = measures["pairing_distance"], ~pairs.right
    known = weight_cosines[weight_cosines.isfinite()]
    total = pairing.sum().clamp_min(torch.finfo(torch.float32).tiny)
    tenth = max(1, round(len(pairing) / 10))
    return {
        "rate": _share(measures["conflict_cosine"] < 0),
        "rate_clean": _share(measures["conflict_cosine_clean"] < 0),
        "rate_weights": None if len(weight_cosines) > len(known) == 0 else _share(known < 0),
        "weights_images": len(known),
        "misclassified_rate": _share(wrong),
        "misclassified_share": _finite(pairing[wrong].sum() / total),
        "top_tenth_share": _finite(pairing.topk(tenth).values.sum() / total),
    }


def weight_conflict(classifier: Classifier, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Cosine (N,) of both losses' gradients in all weights of the network, one pair at a time; below 0 they conflict.

    The classification loss is ALP's, (CE(z, y) + CE(z', y)) / 2, the pairing loss mean_c (z - z')^2. 0 where a
    gradient vanishes. Costs two backward passes an image: a few hundred images are enough for a rate.

    Args:
        classifier: in evaluation mode; its weights and their gradients stay as they are.
        images, adversarial: (N, channels, height, width) on the classifier's device.
    """
    weights = {name: value.detach().clone().requires_grad_() for name, value in classifier.named_parameters()}
    cosines = []
    for pair, label in zip(torch.stack([images, adversarial], dim=1), labels, strict=True):
        with torch.enable_grad():
            logits = functional_call(classifier, weights, (pair,))
            classification = cross_entropy(logits, label.expand(2)).mean()
            pairing = logit_pairing(logits[:1], logits[1:]).sum()
            gradients = [
                torch.autograd.grad(loss, list(weights.values()), retain_graph=first, materialize_grads=True)
                for loss, first in ((classification, True), (pairing, False))
            ]
        one, other = (torch.cat([part.flatten().double() for part in gradient]) for gradient in gradients)
        cosines.append(F.cosine_similarity(one, other, dim=0).float())
    return torch.stack(cosines) if cosines else torch.empty(0)


TRAINING = ("conflict_rate", "conflict_rate_clean", "misclassified_rate", "misclassified_share")


def training_rows(metrics: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    """Rows of a training log as numbers; cells that are empty, as those of older epochs may be, are left out."""
    return [{name: float(cell) for name, cell in row.items() if cell} for row in metrics]


def training_means(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Means over the epochs of what training logs on Observation 2; None where it was not logged."""
    means: dict[str, float | None] = {}
    for name in TRAINING:
        values = [row[name] for row in rows if name in row]
        means[name] = sum(values) / len(values) if values else None
    return means


def _finite(value: Tensor) -> float | None:
    """A number as JSON can hold it, which has no word for others."""
    return float(value) if bool(value.isfinite()) else None


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0
