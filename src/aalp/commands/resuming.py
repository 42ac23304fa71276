"""What an attack that takes long needs: a journal to be stopped and go on with, signals that save, the record at its end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aalp.commands.config import device
from aalp.commands.loading import LoadedModel
from aalp.data.sources import Source
from aalp.errors import InterruptedRunError, OptionError
from aalp.evaluation.journal import Journal
from aalp.method.pgd import evaluating
from aalp.method.precision import multiplies_bfloat16
from aalp.seeding import seed_global_generators
from aalp.stopping import Stopped, raised_signals
from aalp.store.files import remove_leftovers
from aalp.store.records import versions, write_record, write_table
from aalp.store.run import still_free


def check_counts(images: int | None, batch_size: int) -> None:
    """Refuse what no attack can be made on.

    Raises:
        OptionError: a number is below 1.
    """
    if batch_size < 1 or (images is not None and images < 1):
        raise OptionError(f"images is {images} and batch_size is {batch_size}: both have to be at least 1")


def journal_of(folder: Path, loaded: LoadedModel, source: Source, *about: Any) -> Journal:
    """The journal in a folder of this attack and of no other: whatever can change a verdict is in its name.

    Args:
        about: the images' positions and all settings, as JSON can hold them; of validation images their digest, too.
    """
    digest = hashlib.sha256()
    machine = [device().type, multiplies_bfloat16(device()), versions()]
    whole = [loaded.metadata.get("model"), _answer(loaded, source), source.digest, *about, *machine]
    digest.update(json.dumps(whole, sort_keys=True).encode())
    for name, values in loaded.classifier.state_dict().items():
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return Journal(folder / f".partial-{digest.hexdigest()[:16]}")


def _answer(loaded: LoadedModel, source: Source) -> list[str]:
    """What the model says to one image, in a few digits: of the same weights another network, or another code, makes others."""
    classifier = loaded.classifier
    image = torch.linspace(0, 1, math.prod(source.image_shape)).view(1, *source.image_shape)
    seed_global_generators(0)  # one that draws random numbers draws the same ones
    with evaluating(classifier), torch.no_grad():
        logits = classifier(image.to(classifier.head_weight.device)).flatten().tolist()
    return [f"{value:.3g}" for value in logits]


@contextmanager
def stopping(command: str) -> Iterator[None]:
    """Work that is saved piece by piece, and goes on when the command is given again.

    Raises:
        InterruptedRunError: SIGINT, SIGTERM or SIGUSR1 arrived.
    """
    try:
        with raised_signals():
            yield
    except Stopped as stopped:
        raise InterruptedRunError(stopped.number, command) from stopped


def written(
    path: Path, kind: str, content: Mapping[str, Any], journal: Journal, table: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, Any]:
    """Write what the attacks came to, at this path or the next free one, and remove the journal; the record with its path.

    Args:
        table: of the images, to lie beside the record as a Parquet file.
    """
    with still_free(path) as place:
        # The record last: where it exists, all is whole.
        if table is not None:
            write_table(place.with_suffix(".parquet"), table)
        record = write_record(place, kind, content)
        remove_leftovers(place.parent, f"{place.stem}.")
    journal.remove()
    return {**record, "path": str(place)}
