"""Several processes that work on one thing: who they are, how a batch is cut among them, and what they tell one another.

Each process is a *rank* with one device. Under `torchrun`, under `aalp ... --devices N` (which sets the same variables)
and in a SLURM job step the environment says how many there are. Messages between ranks go over torch.distributed, gloo
on CPUs and NCCL on GPUs; with one process nothing here does anything.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from aalp.errors import OptionError

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMEOUT = datetime.timedelta(days=1)
"""How long a rank waits for the others: as long as attacking a batch of a large model can take on a CPU."""


@dataclass(frozen=True)
class Shard:
    """The rows of a batch that one rank works on.

    Attributes:
        start, stop: its rows.
        total: rows of the whole batch.
    """

    start: int
    stop: int
    total: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    What every rank has to call together, and in the same order, is marked "together".

    Attributes:
        rank: this process, in 0..size-1; 0 is the main one, which alone writes files and prints.
        size: processes in all.
        local_rank, local_size: the same among the processes of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, count: int) -> Shard:
        """This rank's rows of a batch of `count`: shares differ by one row at most, nothing is dropped or repeated."""
        starts = shard_starts(count, self.size)
        return Shard(starts[self.rank], starts[self.rank + 1], count)

    def gather_rows(self, local: Tensor, count: int) -> Tensor:
        """The whole batch's rows, of which each rank holds its shard. Together.

        Args:
            local: (b * n, ...): b blocks (such as clean and adversarial images) of this rank's n rows each.
            count: N, rows of the whole batch.

        Returns:
            (b * N, ...), the same on every rank. Its gradient is that of a loss which every rank computes alike from
            it, and counts `size` times, since data parallelism takes the mean over ranks.
        """
        if self.size == 1:
            return local
        shard = self.shard(count)
        mine = shard.stop - shard.start
        by_row = local.view(-1, mine, *local.shape[1:]).transpose(0, 1).contiguous()
        whole: Tensor = _GatherRows.apply(by_row, self.rank, self.size, count)
        return whole.transpose(0, 1).reshape(-1, *local.shape[1:])

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks. Together."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, values in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.view_as(tensor))

    def largest(self, *numbers: int) -> list[int]:
        """The largest value of each number on any rank. Together."""
        return self._reduce(numbers, dist.ReduceOp.MAX) if self.size > 1 else list(numbers)

    def total(self, *numbers: int) -> list[int]:
        """The sum of each number over the ranks. Together."""
        return self._reduce(numbers, dist.ReduceOp.SUM) if self.size > 1 else list(numbers)

    def from_main(self, make: Callable[[], Result]) -> Result:
        """What the main rank makes, handed to all. Together; an error of the main rank ends the others, too."""
        if self.size == 1:
            return make()
        box: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        made: Result = box[0]
        return made

    def first_of_machine(self, make: Callable[[], Result]) -> Result:
        """What each rank makes for itself, one of each machine first: what that one downloads is there for the others.

        Together.
        """
        if self.local_rank > 0:
            self.wait()
        made = make()
        if self.local_rank == 0:
            self.wait()
        return made

    def wait(self) -> None:
        """Until every rank has come here. Together."""
        if self.size > 1:
            self.largest(0)

    def deal(self, items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
        """Work on items, each on one rank; the results come in the items' order, the same on every rank. Together.

        Results hold no tensors on a GPU. They come round by round, so that what is done can be kept at once.
        """
        for first in range(0, len(items), self.size):
            turn = items[first : first + self.size]
            mine = work(turn[self.rank]) if self.rank < len(turn) else None
            yield from zip(turn, self._gather(mine)[: len(turn)], strict=True)

    def _gather(self, mine: Any) -> list[Any]:
        if self.size == 1:
            return [mine]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, mine)
        return box

    @staticmethod
    def _reduce(numbers: Sequence[int], operation: Any) -> list[int]:
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


ALONE = Ranks()
"""One process, which is every rank there is."""


def shard_starts(count: int, size: int) -> list[int]:
    """Where the shard of each of `size` ranks begins in a batch, and where the last one ends; the first ones are longer."""
    share, left = divmod(count, size)
    return [rank * share + min(rank, left) for rank in range(size + 1)]


class _GatherRows(torch.autograd.Function):
    """Rows (n, ...) of every rank, one below the other."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, rank: int, size: int, count: int) -> Tensor:
        starts = shard_starts(count, size)
        ctx.rows, ctx.size = slice(starts[rank], starts[rank + 1]), size
        longest = starts[1]  # gloo gathers equal shapes only
        padded = torch.cat([local, local.new_zeros((longest - len(local), *local.shape[1:]))]).contiguous()
        pieces = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(pieces, padded)
        lengths = [stop - start for start, stop in pairwise(starts)]
        return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient[ctx.rows] * ctx.size, None, None, None


def world(environment: Mapping[str, str] | None = None) -> Ranks | None:
    """Who this process is, as torchrun's variables or those of a SLURM job step say; None where they say nothing.

    Raises:
        OptionError: the variables do not fit together.
    """
    found = dict(os.environ if environment is None else environment)
    if "RANK" in found and "WORLD_SIZE" in found:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif found.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        # "4(x2)": four on each of two machines.
        found[names[3]] = re.sub(r"\(x\d+\)$", "", found.get(names[3], ""))
    else:
        return None
    try:
        rank, size, local_rank, local_size = (int(found[name]) for name in names)
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size and size % local_size == 0):
            raise ValueError
    except (KeyError, ValueError):
        told = ", ".join(f"{name}={found.get(name, '')}" for name in names)
        raise OptionError(
            f"{told}: every machine has to run the same number of processes, started by torchrun or srun"
        ) from None
    return Ranks(rank, size, local_rank, local_size)


def joined(devices: int = 1, nodes: int = 1) -> Ranks:
    """This process among the others that its environment tells of, whom it meets; alone where it tells of none. Together.

    Args:
        devices, nodes: what was asked for; 1 and 1 where it was left to the environment.

    Raises:
        OptionError: something else was asked for than was started, see `world` and `join`.
    """
    ranks = world() or ALONE
    asked, started = (devices, nodes), (ranks.local_size, ranks.size // ranks.local_size)
    if asked not in ((1, 1), started):
        raise OptionError(
            f"devices is {devices} and nodes is {nodes}, and {started[0]} processes were started on {started[1]} machines: "
            "leave both options out, or start that many with the aalp command, torchrun or srun"
        )
    join(ranks)
    return ranks


def join(ranks: Ranks) -> None:
    """Meet the other ranks. Together.

    Raises:
        OptionError: this machine has fewer GPUs than processes, or the environment does not say where to meet.
    """
    if ranks.size == 1 or dist.is_initialized():
        return
    variables = dict(os.environ)
    if "MASTER_ADDR" not in variables and "SLURM_STEP_NODELIST" in variables:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        os.environ["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(variables["SLURM_STEP_NODELIST"])
        os.environ["MASTER_PORT"] = variables.get("MASTER_PORT", str(15000 + int(variables.get("SLURM_JOB_ID", "0")) % 10000))
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise OptionError(f"there are {ranks.size} processes and no MASTER_ADDR and MASTER_PORT to meet at: use torchrun")
    backend = "gloo"
    if torch.cuda.is_available():
        if ranks.local_size > torch.cuda.device_count():
            raise OptionError(
                f"devices is {ranks.local_size} and this machine has {torch.cuda.device_count()} GPUs: give one process a GPU, "
                "and let each see all of them (under SLURM --gpus-per-node)"
            )
        torch.cuda.set_device(ranks.local_rank)
        # What is said about progress lies on the CPU, what is learned on the GPUs.
        backend = "cpu:gloo,cuda:nccl"
    # Those of Lightning and FSDP as well, which do not know of SLURM's.
    os.environ.update(
        RANK=str(ranks.rank),
        WORLD_SIZE=str(ranks.size),
        LOCAL_RANK=str(ranks.local_rank),
        LOCAL_WORLD_SIZE=str(ranks.local_size),
        GROUP_RANK=str(ranks.rank // ranks.local_size),
    )
    dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT)


def leave() -> None:
    """Part from the other ranks when all is done. Together."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_lost(error: RuntimeError) -> bool:
    """Whether a message failed because the rank at its other end is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(sign in text for sign in ("gloo", "Connection closed by peer", "NCCL"))
