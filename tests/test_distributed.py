from __future__ import annotations

import time

import pytest
import torch
from several_ranks import in_ranks

from aalp.data.loaders import Loader
from aalp.data.split import ResidentSplit, Split
from aalp.distributed import ALONE, Ranks, is_lost, shard_starts, world
from aalp.errors import OptionError


@pytest.mark.parametrize(
    ("count", "size", "starts"), [(8, 2, [0, 4, 8]), (7, 3, [0, 3, 5, 7]), (2, 3, [0, 1, 2, 2]), (5, 1, [0, 5])]
)
def test_shards_drop_and_repeat_nothing(count: int, size: int, starts: list[int]) -> None:
    assert shard_starts(count, size) == starts
    shards = [Ranks(rank, size).shard(count) for rank in range(size)]
    assert [row for shard in shards for row in range(count)[shard.rows]] == list(range(count))


class OnDisk:
    """A split that is not resident, so that a loader's worker path reads it."""

    def __init__(self, split: ResidentSplit) -> None:
        self.labels, self.image_shape, self.subset, self.read = split.labels, split.image_shape, split.subset, split.read

    def __len__(self) -> int:
        return len(self.labels)


@pytest.mark.parametrize("resident", [True, False])
def test_loaders_of_all_ranks_together_give_the_batches_of_one(resident: bool) -> None:
    pixels = torch.rand(11, 1, 2, 2)
    split: Split = ResidentSplit(pixels, torch.arange(11))
    split = split if resident else OnDisk(split)  # type: ignore[assignment, arg-type]
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    whole = list(Loader(split, 4, torch.device("cpu")).batches(order))
    parts = [list(Loader(split, 4, torch.device("cpu"), ranks=Ranks(rank, 3)).batches(order)) for rank in range(3)]
    for number, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), images)
        assert all(torch.equal(part[number][1], labels) for part in parts)


def test_ranks_tell_one_another() -> None:
    def work(ranks: Ranks) -> list[object]:
        local = torch.full((2 * (3 if ranks.rank == 0 else 2), 2), float(ranks.rank), dtype=torch.bfloat16)
        local[len(local) // 2 :] += 10  # the second of two blocks
        tensor, early = torch.full((2, 2), float(ranks.rank)), time.monotonic()
        ranks.average([tensor])
        seen = [item * 10 + result for item, result in ranks.deal([1, 2, 3], lambda item: item + ranks.rank)]
        made = ranks.from_main(lambda: f"made by {ranks.rank}")
        return [
            *(ranks.gather_rows(local, 5)[:, 0].tolist(), tensor.tolist(), seen, made),
            *(ranks.largest(ranks.rank, -ranks.rank), ranks.total(1, ranks.rank)),
            ranks.first_of_machine(time.monotonic) - early,
        ]

    first, second = in_ranks(2, work)
    assert first[:-1] == second[:-1]
    # Items 1 and 3 were worked on by rank 0, item 2 by rank 1.
    expected = [[0, 0, 0, 1, 1, 10, 10, 10, 11, 11], [[0.5, 0.5]] * 2, [11, 23, 33], "made by 0", [1, 0], [2, 1]]
    assert first[:-1] == expected


def test_alone_nothing_is_sent() -> None:
    tensor = torch.ones(2)
    ALONE.average([tensor])
    ALONE.wait()
    assert ALONE.gather_rows(tensor, 2) is tensor
    assert (ALONE.largest(3), ALONE.total(3), ALONE.from_main(lambda: 4)) == ([3], [3], 4)
    assert list(ALONE.deal("ab", str.upper)) == [("a", "A"), ("b", "B")]


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}


def test_the_environment_says_who_a_process_is() -> None:
    assert world({}) is None
    assert world(TORCHRUN) == Ranks(3, 4, 1, 2)
    assert world(SLURM) == Ranks(5, 8, 1, 4)
    assert world({**SLURM, **TORCHRUN}) == Ranks(3, 4, 1, 2)  # torchrun inside a job
    assert world({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "4"},
        {"RANK": "x"},
        {"LOCAL_WORLD_SIZE": "3"},
        {"LOCAL_RANK": ""},
    ],
)
def test_an_environment_that_does_not_fit_together_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="every machine has to run the same number of processes"):
        world({**TORCHRUN, **changes})
    with pytest.raises(OptionError, match=r"SLURM_STEP_TASKS_PER_NODE=4,3"):
        world({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4,3"})


def test_a_lost_rank_is_told_from_other_errors() -> None:
    assert is_lost(RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:1"))
    assert is_lost(torch.distributed.DistBackendError("..."))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
