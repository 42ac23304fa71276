"""Batches of a split, on the device: resident images by indexing, images on disk through worker processes.

The order of the images is a function of seed and epoch alone, so a run can go on at any batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aalp.data.split import ResidentSplit, Split, as_float
from aalp.distributed import ALONE, Ranks
from aalp.errors import DataError
from aalp.seeding import derive_seed
from aalp.stopping import leave_stopping_to_main

Batch = tuple[Tensor, Tensor]

Tick = Callable[[str, int, int], None]
"""Called as (what is done, images done, images in all)."""


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order (count,) in which an epoch visits the images."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(count, generator=generator)


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """An order (N,) of as many images in which every class occurs as often as any other, to within one.

    A class of few images shows each of them several times in an epoch, as evenly as it can; one of many shows
    others of them in other epochs.

    Args:
        labels: (N,) int64.
    """
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    present = torch.bincount(labels).nonzero()[:, 0]
    # Which classes get one image more, where the count does not divide, is drawn as well.
    present = present[torch.randperm(len(present), generator=generator)]
    share, more = divmod(len(labels), len(present))
    of_class = torch.split(labels.argsort(stable=True), torch.bincount(labels).tolist())
    chosen = []
    for place, label in enumerate(present.tolist()):
        rows, wanted = of_class[label], share + (place < more)
        passes = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-wanted // len(rows)))]
        chosen.append(torch.cat(passes)[:wanted] if passes else rows[:0])
    everything = torch.cat(chosen)
    return everything[torch.randperm(len(everything), generator=generator)]


def order_of(labels: Tensor, balanced: bool, seed: int, epoch: int) -> Tensor:
    """The order (N,) in which an epoch visits images with these labels (N,)."""
    return balanced_order(labels, seed, epoch) if balanced else epoch_order(len(labels), seed, epoch)


def row_batches(rows: Tensor, batch_size: int, name: str, tick: Tick) -> Iterator[Tensor]:
    """These rows in pieces of at most `batch_size`; `tick` is called with the name before each and after the last."""
    done = 0
    for chunk in torch.split(rows, batch_size):
        if len(chunk) == 0:  # splitting nothing still gives one empty piece
            return
        tick(name, done, len(rows))
        yield chunk
        done += len(chunk)
    tick(name, done, len(rows))


def read_rows(split: Split, rows: Tensor, device: torch.device) -> Batch:
    """Images in [0, 1] and labels of these rows, on the device."""
    return as_float(split.read(rows).to(device)), split.labels[rows].to(device)


class Loader:
    """Batches of a split as (images in [0, 1] float32, labels), on one device.

    Args:
        split: the images.
        batch_size: images a batch; the last batch of a pass is smaller if the count asks for it.
        device: where the batches go; a resident split is moved there once, as uint8.
        workers: processes that read images from disk, each two batches ahead.
        ranks: with several, the images are those of this rank's shard of each batch, the labels those of the whole batch.
    """

    def __init__(self, split: Split, batch_size: int, device: torch.device, workers: int = 0, ranks: Ranks = ALONE) -> None:
        self.split: Split = split
        if isinstance(split, ResidentSplit):
            self.split = ResidentSplit(split.pixels.to(device), split.labels.to(device))
        self.batch_size = batch_size
        self.device = device
        self.workers = workers
        self.ranks = ranks

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-len(self.split) // self.batch_size)

    def batches(self, order: Tensor | None = None, start: int = 0, every: int = 1) -> Iterator[Batch]:
        """The batches of one pass, from batch number `start` on, or only every so many of them.

        Args:
            order: (N,) order of the images; by default as they are stored.
        """
        order = torch.arange(len(self.split)) if order is None else order
        chunks = list(torch.split(order, self.batch_size))[start::every]
        if isinstance(self.split, ResidentSplit):
            for chunk in chunks:
                indices = chunk.to(self.device)
                yield as_float(self.split.pixels[indices[self._rows(chunk)]]), self.split.labels[indices]
        else:
            for batch in self._reader(chunks):
                if isinstance(batch, DataError):
                    raise batch
                pixels, labels = batch
                yield as_float(pixels.to(self.device, non_blocking=True)), labels.to(self.device, non_blocking=True)

    def _reader(self, chunks: list[Tensor]) -> Iterator[Batch | DataError]:
        with warnings.catch_warnings():
            # How many read is the user's to say, and more than there are cores pay where a disk is far away.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            return iter(
                DataLoader(
                    _Chunks(self.split, [(chunk[self._rows(chunk)], chunk) for chunk in chunks]),
                    batch_size=None,
                    num_workers=self.workers,
                    pin_memory=self.device.type == "cuda",
                    # The base seed of the workers would otherwise be drawn from the global generator.
                    generator=torch.Generator().manual_seed(0),
                    worker_init_fn=leave_stopping_to_main,
                )
            )

    def _rows(self, chunk: Tensor) -> slice:
        return self.ranks.shard(len(chunk)).rows


class _Chunks(Dataset[Batch | DataError]):
    """A map-style data set whose items are whole batches, so that a worker decodes a batch at a time.

    An image that cannot be read comes back as its error: raised in a worker it would arrive wrapped in a traceback.
    """

    def __init__(self, split: Split, chunks: list[tuple[Tensor, Tensor]]) -> None:
        self.split = split
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Batch | DataError:
        own, chunk = self.chunks[index]
        try:
            return self.split.read(own), self.split.labels[chunk]
        except DataError as error:
            return error
