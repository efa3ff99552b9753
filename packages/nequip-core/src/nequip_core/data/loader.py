"""The order of batches: a function of (seed, epoch) and nothing else, so that any run can be repeated or resumed.

The plan of an epoch is the same on every rank. What a rank computes of a step is cut out of it afterwards: its share of
the structures, in micro-batches that fit its memory. So neither the number of devices nor their memory changes what a
step consists of.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from nequip_core.data.batch import Batch
from nequip_core.data.dataset import Dataset
from nequip_core.errors import InputError
from nequip_core.structure import Ints


def plan_epoch(sizes: Ints, size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Optimizer steps of one epoch: which structures each has, on all devices together.

    Args:
        sizes: [structures] what each counts: 1, its atoms or its edges.
        size: largest sum of ``sizes`` in a step; a single larger structure is a step of its own.
        seed: of the run.
        epoch: number of the epoch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    return fill(order.tolist(), sizes, size)


def fill(order: Sequence[int], sizes: Ints, size: int) -> list[list[int]]:
    """Consecutive structures until the next would exceed the size."""
    groups: list[list[int]] = []
    total = 0
    for number, weight in zip(order, sizes[np.asarray(order, dtype=np.int64)].tolist(), strict=True):
        if not groups or total + weight > size:
            groups.append([])
            total = 0
        groups[-1].append(number)
        total += weight
    return groups


def share(step: Sequence[int], rank: int, ranks: int, sizes: Ints) -> list[int]:
    """The structures of a step that one of several ranks computes; all ranks together have each once.

    The largest goes first, each to the rank that has least so far: so all ranks have nearly the same work.

    Args:
        step: structures.
        rank: of this process.
        ranks: how many there are.
        sizes: [structures of the data set] the work of each.
    """
    if ranks == 1:
        return list(step)
    loads = [(0, 0, number) for number in range(ranks)]  # a heap of work, structures, rank
    mine = []
    for place in sorted(range(len(step)), key=lambda place: -sizes[step[place]]):
        work, count, to = loads[0]
        heapq.heapreplace(loads, (work + int(sizes[step[place]]), count + 1, to))
        if to == rank:
            mine.append(place)
    return [step[place] for place in sorted(mine)]


class TrainSteps(Sampler[list[int]]):
    """Steps of training, each a list of structures; another order in every epoch. See `TrainLoader` for the way on.

    It has no length: by atoms or edges epochs have different numbers of steps, and Lightning would hold all epochs to
    the number of the first. So Lightning looks one step ahead for the end.

    Args:
        sizes: [structures] what each counts in a step.
        size: of a step.
        seed: of the run.
        limit: whole number: at most so many steps of an epoch; otherwise a fraction of them.

    Attributes:
        epoch: that is trained, or is next.
        begin: the step of it that an iteration begins with.
    """

    def __init__(self, sizes: Ints, size: int, seed: int, limit: float = 1.0) -> None:
        if size < 1:
            raise InputError(f"data.batch.size must be at least 1, received {size}.")
        self.sizes, self.size, self.seed, self.limit = sizes, size, seed, limit
        self.epoch = self.begin = 0
        self._plans: dict[int, list[list[int]]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, as Lightning asks before each."""
        self.epoch = epoch

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch, for the next iteration only."""
        self.epoch, self.begin = epoch, step

    @property
    def steps(self) -> list[list[int]]:
        """Of the current epoch."""
        return self._plan(self.epoch)

    @property
    def count(self) -> int:
        """Steps of the current epoch."""
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        """Without end: after the steps of an epoch an empty one, then the next epoch."""
        # A generator: of two iterators, which a loader with workers makes, only the one that is used goes ahead.
        epoch, begin, self.begin = self.epoch, self.begin, 0
        while True:
            yield from self._plan(epoch)[begin:]
            yield []
            epoch, begin = epoch + 1, 0

    def _plan(self, epoch: int) -> list[list[int]]:
        if epoch not in self._plans:
            steps = plan_epoch(self.sizes, self.size, seed=self.seed, epoch=epoch)
            kept = self.limit if isinstance(self.limit, int) else max(1, math.floor(self.limit * len(steps)))
            latest = list(self._plans.items())[-1:]  # an epoch may end while the next one is being made
            self._plans = dict([*latest, (epoch, steps[:kept])])
        return self._plans[epoch]


class TrainLoader(DataLoader[Any]):
    """Steps of one epoch at each iteration. Meanwhile workers go on to the next epoch, so that it begins at once.

    Its sampler is `TrainSteps`. What it gives are lists, of which an empty one ends an epoch.
    """

    _going: Iterator[Any] | None = None
    _upcoming: tuple[int, int] | None = None
    """Where the iterator that is there goes on: epoch and step."""

    def __iter__(self) -> Any:
        return self._epoch(super().__iter__)

    def _epoch(self, begin: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        # A generator too: Lightning makes iterators that it does not use.
        assert isinstance(self.sampler, TrainSteps)
        epoch = self.sampler.epoch
        if self._going is None or self._upcoming != (epoch, self.sampler.begin):
            self._going = begin()
        self._upcoming = None
        for batches in self._going:
            if not batches:
                self._upcoming = epoch + 1, 0
                return
            yield batches


class EvalSteps(Sampler[list[int]]):
    """Batches of validation: every structure once over all ranks, in order; none is there to fill up.

    A rank without structures has one batch without numbers, since Lightning leaves out what belongs to an epoch where
    there is none.

    Args:
        edges: [structures] edges of each.
        size: structures of a batch.
        max_edges: most edges of a batch; None: no limit.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(self, edges: Ints, size: int, max_edges: int | None = None, rank: int = 0, ranks: int = 1) -> None:
        mine = share(range(len(edges)), rank, ranks, edges)
        batches = [mine[n : n + size] for n in range(0, len(mine), size)]
        pieces = [piece for batch in batches for piece in micro_batches(batch, edges, max_edges)]
        self.steps = pieces or ([[]] if len(edges) else [])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def micro_batches(numbers: Sequence[int], edges: Ints, max_edges: int | None) -> list[list[int]]:
    """Structures cut into pieces of at most ``max_edges`` edges; a larger structure is a piece of its own."""
    return [list(numbers)] if max_edges is None else fill(numbers, edges, max_edges)


class Steps:
    """From the structures of a step to this rank's micro-batches, whose gradients add up to the step's.

    A rank without structures gets the first one without its labels, so that it takes part with a gradient of zero. An
    empty step has no micro-batches.

    Args:
        dataset: structures to train on.
        max_edges: of a micro-batch; None: no limit.
        rank: of this process.
        ranks: how many there are.
        sizes: [structures] the work of each, which ranks share evenly; None: its edges.
    """

    def __init__(
        self,
        dataset: Dataset,
        max_edges: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        sizes: Ints | None = None,
    ) -> None:
        self.dataset, self.max_edges, self.rank, self.ranks = dataset, max_edges, rank, ranks
        self.sizes = dataset.edges if sizes is None else sizes

    def __getitem__(self, step: Sequence[int]) -> list[Batch]:
        if not step:
            return []
        denominators = self.dataset.denominators(step)
        mine = share(step, self.rank, self.ranks, self.sizes)
        if not mine:
            return [self.dataset.batch(step[:1], denominators, counts=False)]
        pieces = micro_batches(mine, self.dataset.edges, self.max_edges)
        return [self.dataset.batch(piece, denominators) for piece in pieces]


class Batches:
    """From the structures of a validation batch to the batch; no numbers: the first one, of which nothing counts."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, numbers: Sequence[int]) -> Batch:
        return self.dataset.batch(numbers) if numbers else self.dataset.batch([0], counts=False)
