"""What APGD-CE finds in bfloat16 and in float32 as balls get small: why AutoAttack looks at eps before it searches in bfloat16.

    aalp train --config digits --training.epochs 12 --run runs/digits
    python benchmarks/small_balls.py runs/digits --out benchmarks/results/small_balls.json

The run's network is put behind a layer that stretches contrast, z = (x - offset) / a, and gets images offset + a x in a ball
of a eps. In float32 that is the same task for every a; in bfloat16 the images are rounded where the ball is small. `cast`
rounds the images on their way into the network, `autocast` in front of each product, behind the stretching. On test images,
emulated where the hardware has no bfloat16: a study of the search, in which nothing is chosen by accuracy.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aalp.commands.loading import load_model, weights_file
from aalp.commands.opening import run_config, stored_source, stored_threat
from aalp.commands.tables import text_table
from aalp.data.split import as_float
from aalp.evaluation.apgd import apgd_ce
from aalp.evaluation.views import Views, blur, views
from aalp.export.subject import Plain
from aalp.method.threat import Threat
from aalp.models.classifier import Classifier
from aalp.models.inference_copy import in_bfloat16
from aalp.store.records import write_record

SEEDS = 2
SOME = 32


class Stretch(nn.Module):
    def __init__(self, offset: float, scale: float) -> None:
        super().__init__()
        self.offset, self.scale = offset, scale

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.offset) / self.scale


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = run_config(arguments.run)
    source = stored_source(None, None, config)
    loaded = load_model(weights_file(arguments.run, "best"))
    rows = torch.arange(min(arguments.images, len(source.test)))
    images, labels = as_float(source.test.read(rows)), source.test.labels[rows]
    threat = stored_threat(None, None, loaded, config).build()
    found = [row for power in (0, 3, 4, 5, 6, 7, 8) for row in searched(loaded.classifier, images, labels, threat, 0.5**power)]
    header = ("a", "eps", "bf16 by", "error of logits", "blur", "float32", "bf16")
    print(text_table(header, [shown(row) for row in found]))
    if arguments.out:
        write_record(arguments.out, "small-balls", {"run": str(arguments.run), "images": len(images), "rows": found})


def searched(classifier: Classifier, images: Tensor, labels: Tensor, threat: Threat, scale: float) -> list[dict[str, Any]]:
    """Accuracy under APGD-CE, by seed, in float32 and by each view in bfloat16, where images are shrunk to `scale`."""
    offset = 1 - scale
    network = nn.Sequential(Stretch(offset, scale), copy.deepcopy(Plain(classifier)))
    squeezed = Classifier(network).eval().requires_grad_(False)
    images, ball = offset + scale * images, type(threat)(scale * threat.eps)
    seen = views(squeezed, images)
    short = in_bfloat16(copy.deepcopy(network))

    def cast(images: Tensor) -> Tensor:
        logits: Tensor = short(images.to(torch.bfloat16))
        return logits.float()

    def autocast(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = network(images)
        return logits.float()

    exact = left(seen, images, labels, ball)
    rows = []
    for name, rough in (("cast", cast), ("autocast", autocast)):
        some = images[:SOME]
        with torch.no_grad():
            wanted = seen.steady(some)
            error = float((rough(some) - wanted).abs().amax() / (wanted.amax() - wanted.amin()))
        about = {"scale": scale, "eps": ball.eps, "view": name, "error": error, "blur": blur(rough, seen.steady, some, ball)}
        accuracy = left(Views(seen.judge, seen.steady, rough, True), images, labels, ball)
        rows.append({**about, "float32": exact, "bf16": accuracy})
    return rows


def left(seen: Views, images: Tensor, labels: Tensor, threat: Threat) -> list[float]:
    """Accuracy under APGD-CE by seed, counted by the judge."""
    return [1 - float(seen.wrong(apgd_ce(seen, images, labels, threat, seed), labels).float().mean()) for seed in range(SEEDS)]


def shown(row: dict[str, Any]) -> list[str]:
    accuracies = [" ".join(f"{value:.1%}" for value in row[name]) for name in ("float32", "bf16")]
    return [
        f"1/{round(1 / row['scale'])}",
        f"{row['eps']:.4f}",
        row["view"],
        f"{row['error']:.3f}",
        f"{row['blur']:.3f}",
        *accuracies,
    ]


if __name__ == "__main__":
    main()
