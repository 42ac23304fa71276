"""Pictures of the training attack at work, for experiment trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric.loggers.logger import Logger

from aalp.commands.loading import load_model
from aalp.data.sources import Source
from aalp.data.split import as_float
from aalp.method.pgd import perturb
from aalp.seeding import derive_seed
from aalp.shown import eps_text
from aalp.store.run import RunDirectory
from aalp.training.trackers import log_pictures

PICTURES = 8
"""Images shown to a tracker."""


def log_adversarial(loggers: Sequence[Logger], directory: RunDirectory, options: Mapping[str, Any], source: Source) -> None:
    """Log a sheet of clean validation images, what the training attack makes of them with the best weights, and the change."""
    split = source.validation if len(source.validation) > 0 else source.train
    if not loggers or not directory.weights("best").is_file():
        return
    rows = torch.arange(min(PICTURES, len(split)))
    clean, labels = as_float(split.read(rows)), split.labels[rows]
    loaded = load_model(directory.weights("best"), options["model"], options["model_options"])
    threat, attack = options["threat"].build(), options["attack"]
    generator = torch.Generator().manual_seed(derive_seed("pictures", options["seed"]))
    adversarial = perturb(loaded.classifier, clean, labels, threat, attack.steps, generator=generator)
    # The largest change that Linf allows becomes black or white.
    change = (adversarial - clean) / (2 * (adversarial - clean).abs().max().clamp_min(1e-9)) + 0.5
    with torch.no_grad():
        said = [loaded.classifier(images).argmax(1).tolist() for images in (clean, adversarial)]
    names = source.classes
    told = [f"{names[y]}: {names[c]} -> {names[a]}" for y, c, a in zip(labels.tolist(), *said, strict=True)]
    rows_are = f"clean; adversarial (PGD-{attack.steps}, {threat.norm} eps {eps_text(threat.eps)}); change"
    caption = f"{rows_are}. Label: clean -> adversarial prediction: {', '.join(told)}"
    pictures, epoch = torch.stack([clean, adversarial, change]), int(loaded.metadata.get("epoch", 0))
    log_pictures(loggers, "adversarial", pictures, caption, epoch)
