"""Clean, adversarial and difference images as PNG inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from aalp.report.blocks import Pictures
from aalp.report.collect import Run

LONGEST_SIDE = 96


def gallery(run: Run, most: int, budget: int) -> tuple[list[Pictures], float]:
    """The first images of a run's analysis, as the analysis drew them, and the factor of the difference images.

    Args:
        most: how many at most.
        budget: characters of the page that they may take; at least one image is shown.
    """
    if run.gallery is None or run.analysis is None:
        return [], 1.0
    about, classes = run.analysis["gallery"], [str(name) for name in run.analysis["classes"]]
    clean, adversarial = (run.gallery[name].float() for name in ("clean", "adversarial"))
    difference = adversarial - clean
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    factor = 0.5 / largest if largest > 0 else 1.0
    names = [[_name(classes, at) for at in about[key]] for key in ("labels", "clean_predictions", "adversarial_predictions")]
    found: list[Pictures] = []
    for at in range(min(most, len(clean), *map(len, names))):
        label, before, after = (column[at] for column in names)
        images = [_png(image) for image in (clean[at], adversarial[at], 0.5 + factor * difference[at])]
        budget -= sum(map(len, images))
        if found and budget < 0:
            break
        verdict = "wrong already" if before != label else "stands" if after == label else "fooled"
        found.append(Pictures(images[0], images[1], images[2], label, before, after, verdict))
    return found, factor


def _name(classes: Sequence[str], at: int) -> str:
    return classes[at] if 0 <= at < len(classes) else str(at)


def _png(image: Tensor) -> str:
    """A (channels, height, width) image in [0, 1] as a data URI; large ones are made smaller to keep the page small."""
    if image.shape[0] != 3:  # anything but RGB is shown in grey
        image = image.mean(0, keepdim=True)
    longest = max(image.shape[1:])
    if longest > LONGEST_SIDE:
        size = [max(1, round(side * LONGEST_SIDE / longest)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size=size, mode="area")[0]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
