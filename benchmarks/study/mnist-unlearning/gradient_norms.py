"""How long the gradients of a training are: `python gradient_norms.py train ... --training.clip 4`, a line every 58 steps."""

from __future__ import annotations

import sys

import numpy as np
from torch.nn.utils import get_total_norm

from aalp.cli import main
from aalp.training import loop
from aalp.training.step import TrainingStep

norms: list[float] = []


class Told(TrainingStep):
    """A step that keeps the norm of its gradient from before it is clipped."""

    def update(self) -> None:
        gradients = [parameter.grad for parameter in self.classifier.parameters() if parameter.grad is not None]
        norms.append(float(get_total_norm(gradients)))
        if len(norms) % 58 == 0:
            low, median, high, largest = np.percentile(norms[-58:], [10, 50, 90, 100])
            print(f"{len(norms)} p10 {low:.2f} median {median:.2f} p90 {high:.2f} max {largest:.2f}", flush=True)
        super().update()


if __name__ == "__main__":
    vars(loop)["TrainingStep"] = Told
    sys.exit(main())
