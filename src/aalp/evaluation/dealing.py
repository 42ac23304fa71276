"""Batches of images dealt out to ranks, and those that an earlier attempt has done left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from aalp.data.loaders import Tick
from aalp.distributed import ALONE, Ranks
from aalp.evaluation.journal import AttackedBatch, Journal

Result = TypeVar("Result")


def deal_batches(
    rows: Tensor,
    batch_size: int,
    name: str,
    tick: Tick,
    work: Callable[[int, Tensor], Result],
    find: Callable[[int, Tensor], Result | None] | None = None,
    keep: Callable[[int, Result], None] | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Result]]:
    """Work on rows in pieces of at most `batch_size`, each on one rank; every rank gets all results, in order.

    Which rows make a batch, and which number it has, does not hang on the ranks.

    Args:
        rows: (N,) positions.
        tick: called with the name before and after each batch; `name`, images done, N.
        work: (number of the batch, its rows) -> its result, on the CPU.
        find: (number, rows) -> the result of an earlier attempt, or None; asked of the main rank.
        keep: (number, result), called on the main rank for each new result as soon as it is there.
    """
    batches = [batch for batch in torch.split(rows, batch_size) if len(batch)]
    found: list[Result | None] = ranks.from_main(
        lambda: [find(number, batch) if find else None for number, batch in enumerate(batches)]
    )
    dealt = ranks.deal(
        [number for number, result in enumerate(found) if result is None], lambda number: work(number, batches[number])
    )
    done = 0
    for number, batch in enumerate(batches):
        tick(name, done, len(rows))
        result = found[number]
        if result is None:
            result = next(dealt)[1]
            if keep and ranks.is_main:
                keep(number, result)
        yield batch, result
        done += len(batch)
    if batches:
        tick(name, done, len(rows))


def attacked_batches(
    rows: Tensor,
    batch_size: int,
    name: str,
    tick: Tick,
    attack: Callable[[int, Tensor], AttackedBatch],
    stage: str,
    journal: Journal | None,
    ranks: Ranks,
) -> Iterator[tuple[Tensor, AttackedBatch]]:
    """`deal_batches` for an attack, with a journal for what is done: the rest is attacked, the results come in order."""
    return deal_batches(
        *(rows, batch_size, name, tick, attack),
        find=None if journal is None else lambda number, batch: journal.read(stage, number, batch),
        keep=None if journal is None else lambda number, result: journal.write(stage, number, result),
        ranks=ranks,
    )
