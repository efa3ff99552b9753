"""The order of batches."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Any

import numpy as np
import pytest

from nequip_core.data.loader import EvalSteps, TrainLoader, TrainSteps, micro_batches, plan_epoch, share
from nequip_core.errors import InputError

ONES = np.ones(23, dtype=np.int64)


def test_every_structure_once_in_every_epoch() -> None:
    for epoch in range(3):
        steps = plan_epoch(ONES, 5, seed=1, epoch=epoch)
        assert [len(step) for step in steps] == [5, 5, 5, 5, 3]
        assert sorted(n for step in steps for n in step) == list(range(23))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert plan_epoch(ONES, 5, seed=1, epoch=2) == plan_epoch(ONES, 5, seed=1, epoch=2)
    assert plan_epoch(ONES, 5, seed=1, epoch=2) != plan_epoch(ONES, 5, seed=1, epoch=3)
    assert plan_epoch(ONES, 5, seed=1, epoch=2) != plan_epoch(ONES, 5, seed=2, epoch=2)
    # seed + epoch would make one run's second epoch another's first
    assert plan_epoch(ONES, 5, seed=1, epoch=2) != plan_epoch(ONES, 5, seed=2, epoch=1)


def test_by_atoms_or_edges() -> None:
    sizes = np.random.default_rng(0).integers(1, 60, size=200)
    sizes[17] = 500
    steps = plan_epoch(sizes, 100, seed=0, epoch=0)
    assert sorted(n for step in steps for n in step) == list(range(200))
    assert all(sizes[step].sum() <= 100 for step in steps if step != [17])
    assert [17] in steps


def plan(epoch: int) -> list[list[int]]:
    return plan_epoch(ONES, 5, seed=1, epoch=epoch)


def test_a_sampler_goes_from_epoch_to_epoch() -> None:
    steps = TrainSteps(ONES, 5, seed=1)
    assert steps.count == 5
    assert list(islice(steps, 12)) == [*plan(0), [], *plan(1), []]
    steps.set_epoch(4)
    assert steps.steps == plan(4)
    assert list(islice(steps, 6)) == list(islice(steps, 6)) == [*plan(4), []]


def test_going_on_in_mid_epoch() -> None:
    steps = TrainSteps(ONES, 5, seed=1)
    steps.seek(3, 2)
    iter(steps)  # as a loader with workers does, before the iterator that it uses
    assert list(islice(steps, 9)) == [*plan(3)[2:], [], *plan(4)]
    assert list(takewhile(bool, steps)) == plan(3)


class Made(Sequence[list[int]]):
    """Steps as they are; it notes the first structure of each that was made, in whatever process."""

    def __init__(self) -> None:
        self.count = multiprocessing.Value("i", 0)
        self.first = multiprocessing.Array("i", 100)

    def __getitem__(self, step: Any) -> Any:
        if step:
            with self.count.get_lock():
                self.first[self.count.value] = step[0]
                self.count.value += 1
        return step

    def __len__(self) -> int:
        return len(ONES)


def loader_of(made: Made, steps: TrainSteps, workers: int) -> TrainLoader:
    return TrainLoader(
        made, sampler=steps, batch_size=None, collate_fn=list, num_workers=workers, persistent_workers=workers > 0
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_each_iteration_is_an_epoch(workers: int) -> None:
    steps = TrainSteps(ONES, 5, seed=1)
    loader = loader_of(Made(), steps, workers)
    for epoch in (0, 1, 2, 7, 7, 0):
        steps.set_epoch(epoch)
        iter(loader)  # as Lightning does, before the iterator that it uses
        assert list(loader) == plan(epoch)
    steps.set_epoch(1)
    assert list(islice(loader, 2)) == plan(1)[:2]  # a run that ends in mid-epoch
    assert list(loader) == plan(1)
    steps.seek(2, 3)
    assert list(loader) == plan(2)[3:]


def test_workers_begin_the_next_epoch_while_one_ends() -> None:
    steps, made = TrainSteps(ONES, 5, seed=1), Made()
    loader = loader_of(made, steps, workers=1)
    assert list(loader) == plan(0)
    expected = [step[0] for epoch in (0, 1) for step in plan(epoch)][:6]
    deadline = time.monotonic() + 30
    while made.count.value < len(expected) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made.first[: len(expected)] == expected
    steps.set_epoch(1)
    assert list(loader) == plan(1)
    assert made.first[:10] == [step[0] for epoch in (0, 1) for step in plan(epoch)]  # none was made twice


@pytest.mark.parametrize(("structures", "size"), [(10, 4), (8, 4), (3, 64), (1, 1), (0, 4)])
def test_validation_has_every_structure_once_in_order(structures: int, size: int) -> None:
    steps = EvalSteps(np.ones(structures, dtype=np.int64), size)
    assert [n for step in steps for n in step] == list(range(structures))
    assert all(0 < len(step) <= size for step in steps)
    assert len(list(steps)) == len(steps)


def test_a_size_below_one() -> None:
    with pytest.raises(InputError, match=r"data\.batch\.size"):
        TrainSteps(ONES, 0, seed=1)


def test_a_part_of_an_epoch() -> None:
    whole = plan_epoch(ONES, 5, seed=1, epoch=0)
    for limit, count in ((3, 3), (100, 5), (1.0, 5), (0.5, 2), (0.01, 1)):
        assert list(takewhile(bool, TrainSteps(ONES, 5, seed=1, limit=limit))) == whole[:count]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_a_step(ranks: int) -> None:
    step = plan_epoch(ONES, 5, seed=1, epoch=0)[0]
    parts = [share(step, rank, ranks, ONES) for rank in range(ranks)]
    assert sorted(n for part in parts for n in part) == sorted(step)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part, key=step.index) for part in parts)  # in the order of the plan


@pytest.mark.parametrize("ranks", [2, 4, 8, 64])
@pytest.mark.parametrize("sizes", ["molecules", "mixed", "one large among small"])
def test_ranks_have_equal_work(sizes: str, ranks: int) -> None:
    rng = np.random.default_rng(0)
    count = 32 * ranks
    work = {
        "molecules": 21 * rng.integers(15, 20, size=count),  # like rMD17: one molecule, edges that fluctuate
        "mixed": (20 * rng.lognormal(3.0, 0.8, size=count)).astype(np.int64),
        "one large among small": np.where(np.arange(count) % 32 == 0, 4000, rng.integers(100, 400, size=count)),
    }[sizes]
    loads = [int(work[share(range(count), rank, ranks, work)].sum()) for rank in range(ranks)]
    assert sum(loads) == work.sum()
    assert max(loads) / np.mean(loads) - 1 < 0.05


def test_structures_without_edges_are_shared_too() -> None:
    parts = [share(range(6), rank, 3, np.zeros(6, dtype=np.int64)) for rank in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize(("structures", "ranks"), [(10, 3), (2, 4), (7, 1)])
@pytest.mark.parametrize("max_edges", [None, 5])
def test_ranks_share_validation_without_counting_twice(structures: int, ranks: int, max_edges: int | None) -> None:
    edges = np.arange(structures)
    shares = [list(EvalSteps(edges, 4, max_edges, rank, ranks)) for rank in range(ranks)]
    assert all(shares)  # a rank without structures has a batch of none
    steps = [step for steps in shares for step in steps]
    assert sorted(n for step in steps for n in step) == list(range(structures))
    assert max_edges is None or all(len(step) == 1 or edges[step].sum() <= max_edges for step in steps)


def test_micro_batches() -> None:
    edges = np.array([3, 4, 9, 1, 1, 1])
    assert micro_batches([0, 1, 2, 3, 4, 5], edges, 5) == [[0], [1], [2], [3, 4, 5]]
    assert micro_batches([5, 1, 0], edges, None) == [[5, 1, 0]]
