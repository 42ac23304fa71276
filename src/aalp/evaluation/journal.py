"""What an evaluation has found so far, a file a batch of images, so that one that was killed goes on where it stood."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aalp.errors import RunError
from aalp.store.checkpoint import read_tensors, write_tensors
from aalp.store.files import remove


@dataclass(frozen=True)
class AttackedBatch:
    """What one attack did to one batch.

    Attributes:
        rows: (n,) positions of the images in the evaluation.
        fooled: (n,) bool: misclassified.
        measures: per-image measurements by name, (n, ...) each.
        seconds: wall time.
        earlier: read from a journal.
    """

    rows: Tensor
    fooled: Tensor
    measures: dict[str, Tensor]
    seconds: float
    earlier: bool = False


@dataclass(frozen=True)
class Journal:
    """The batches of one evaluation that are done.

    Attributes:
        folder: where they lie; its name has to tell this evaluation from any other (weights, images, attacks, seeds):
            what is found in it is believed.
    """

    folder: Path

    def read(self, stage: str, number: int, rows: Tensor) -> AttackedBatch | None:
        """A batch of these images that was attacked before, or None; one whose file is damaged was not."""
        try:
            tensors, metadata = read_tensors(self._path(stage, number))
            batch = AttackedBatch(tensors.pop("rows"), tensors.pop("fooled"), tensors, float(metadata["seconds"]), True)
        except (RunError, KeyError, TypeError, ValueError):
            return None
        fits = batch.fooled.dtype == torch.bool and torch.equal(batch.rows, rows) and math.isfinite(batch.seconds)
        return batch if fits and all(len(values) == len(rows) for values in (batch.fooled, *tensors.values())) else None

    def write(self, stage: str, number: int, batch: AttackedBatch) -> None:
        """Keep a batch.

        Raises:
            RunError: it cannot be written.
        """
        tensors = {"rows": batch.rows, "fooled": batch.fooled, **batch.measures}
        write_tensors(self._path(stage, number), tensors, {"kind": "attacked batch", "seconds": batch.seconds})

    def remove(self) -> None:
        """Remove the batches, now that the record holds them all."""
        for path in (*self.folder.glob("*.safetensors"), *self.folder.glob(".*.partial")):
            remove(path)
        with contextlib.suppress(OSError):  # something of somebody else's is in it
            self.folder.rmdir()

    def _path(self, stage: str, number: int) -> Path:
        return self.folder / f"{stage}-{number:06d}.safetensors"
