from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from aalp.data.folder import open_folder
from aalp.data.images import Layout
from aalp.data.loaders import Loader, balanced_order, epoch_order
from aalp.data.split import ResidentSplit
from aalp.errors import DataError
from aalp.seeding import derive_seed

CPU = torch.device("cpu")


def numbered_split(count: int) -> ResidentSplit:
    """Images whose pixels, and whose label, tell their position."""
    return ResidentSplit(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2), torch.arange(count))


def test_an_epoch_visits_every_image_once_in_an_order_of_its_seed_and_number() -> None:
    order = epoch_order(100, seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, seed=0, epoch=0))
    assert not torch.equal(order, epoch_order(100, seed=0, epoch=1))
    assert not torch.equal(order, epoch_order(100, seed=1, epoch=0))


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 5, [3]), (0, 5, [])])
def test_a_pass_gives_all_images_with_their_labels_in_batches(count: int, batch_size: int, sizes: list[int]) -> None:
    loader = Loader(numbered_split(count), batch_size, CPU)
    batches = [batch for batch in loader.batches() if len(batch[1])]
    assert [len(labels) for _, labels in batches] == sizes
    assert len(loader) == len(sizes)
    for images, labels in batches:
        assert images.dtype == torch.float32
        torch.testing.assert_close(images[:, 0, 0, 0] * 255, labels.float())
    assert [label for _, labels in batches for label in labels.tolist()] == list(range(count))


def test_batches_follow_the_order_that_is_given() -> None:
    order = torch.tensor([5, 1, 4, 0])
    labels = [labels.tolist() for _, labels in Loader(numbered_split(6), 3, CPU).batches(order)]
    assert labels == [[5, 1, 4], [0]]


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_pass_can_start_at_any_batch(workers: int | None, image_folder: Path) -> None:
    split = open_folder(image_folder, Layout(), 0.5, 0).train
    loader = Loader(split.decode() if workers is None else split, 12, CPU, workers or 0)
    order = epoch_order(len(split), 0, 0)
    whole = list(loader.batches(order))
    for start in (0, 1, 3, 4) if workers != 1 else (3,):
        rest = list(loader.batches(order, start=start))
        assert len(rest) == len(whole) - start
        for (images, labels), (same_images, same_labels) in zip(rest, whole[start:], strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_on_disk_come_as_those_in_memory_do(workers: int, image_folder: Path) -> None:
    split = open_folder(image_folder, Layout(), 0.5, 0).train
    order = epoch_order(len(split), 3, 1)
    on_disk = list(Loader(split, 7, CPU, workers).batches(order))
    in_memory = list(Loader(split.decode(), 7, CPU).batches(order))
    for (images, labels), (same_images, same_labels) in zip(on_disk, in_memory, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_more_workers_than_cores_read_without_a_warning(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._utils, "cpu_count", lambda: 1)
    assert len(list(Loader(open_folder(image_folder, Layout(), 0.5, 0).train, 12, CPU, workers=2).batches())) > 1


@pytest.mark.parametrize("on_disk", [False, True])
def test_loading_leaves_the_global_random_state_alone(on_disk: bool, image_folder: Path) -> None:
    split = open_folder(image_folder, Layout(), 0.5, 0).train
    state = torch.get_rng_state()
    list(Loader(split if on_disk else split.decode(), 10, CPU).batches(epoch_order(len(split), 0, 0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_outlive_the_signals_that_stop_a_training(image_folder: Path) -> None:
    split = open_folder(image_folder, Layout(), 0.5, 0).train
    batches = Loader(split, 5, CPU, workers=1).batches()
    seen = len(next(batches)[1])
    for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(int(worker.pid or 0), number)  # as `timeout` and batch systems do
    assert seen + sum(len(labels) for _, labels in batches) == len(split)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line_whoever_reads_it(workers: int, image_folder: Path) -> None:
    path = image_folder / "train" / "dog" / "003.png"
    split = open_folder(image_folder, Layout(), 0.5, 0).train
    path.write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        list(Loader(split, 10, CPU, workers).batches())
    assert str(caught.value).startswith(f"'{path}' is not a readable image")
    assert "\n" not in str(caught.value)


def test_a_balanced_order_draws_every_class_equally_often_and_no_image_twice_before_all_once() -> None:
    labels = torch.tensor([0] * 20 + [2] * 3 + [3] * 7)
    order = balanced_order(labels, seed=0, epoch=0)
    assert order.shape == (30,)
    drawn = torch.bincount(labels[order], minlength=4).tolist()
    assert drawn == [10, 0, 10, 10]
    times = torch.bincount(order, minlength=30)
    assert times[:20].max() == 1
    assert sorted(times[20:23].tolist()) == [3, 3, 4]
    assert sorted(times[23:].tolist()) == [1, 1, 1, 1, 2, 2, 2]
    # A function of seed and epoch alone; other epochs show other images of the large class, and are mixed.
    assert torch.equal(order, balanced_order(labels, seed=0, epoch=0))
    later = balanced_order(labels, seed=0, epoch=1)
    assert set(later[later < 20].tolist()) != set(order[order < 20].tolist())
    assert labels[order].tolist() != sorted(labels[order].tolist())


def test_a_balanced_order_is_the_one_that_looks_for_each_class_by_itself() -> None:
    labels = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(derive_seed("order", 3, 5))
    present = torch.arange(7)[torch.randperm(7, generator=generator)]
    chosen = []
    for place, label in enumerate(present):
        rows, wanted = (labels == label).nonzero()[:, 0], 28 + (place < 4)
        passes = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-wanted // len(rows)))]
        chosen.append(torch.cat(passes)[:wanted])
    expected = torch.cat(chosen)[torch.randperm(200, generator=generator)]
    assert torch.equal(balanced_order(labels, seed=3, epoch=5), expected)


def test_a_count_that_does_not_divide_is_shared_out_by_chance() -> None:
    labels = torch.tensor([0] * 5 + [1] * 1 + [2] * 4)
    counts = [torch.bincount(labels[balanced_order(labels, 0, epoch)], minlength=3).tolist() for epoch in range(30)]
    assert all(sorted(count) == [3, 3, 4] for count in counts)
    assert {count.index(4) for count in counts} == {0, 1, 2}
