"""The order of batches: a function of (seed, epoch) and nothing else, so that any run can be repeated or resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from nequip_core.errors import InputError
from nequip_core.structure import Ints


def plan_epoch(sizes: Ints, size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Optimizer steps of one epoch: which structures each has.

    Args:
        sizes: [structures] what each counts: 1, its atoms or its edges.
        size: largest sum of ``sizes`` in a step; a single larger structure is a step of its own.
        seed: of the run.
        epoch: number of the epoch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    return _fill(order.tolist(), sizes, size)


def _fill(order: Sequence[int], sizes: Ints, size: int) -> list[list[int]]:
    """Consecutive structures until the next would exceed the size."""
    steps: list[list[int]] = []
    total = 0
    for number in order:
        if not steps or total + sizes[number] > size:
            steps.append([])
            total = 0
        steps[-1].append(number)
        total += int(sizes[number])
    return steps


class TrainSteps(Sampler[list[int]]):
    """Batch sampler of training: another order in every epoch."""

    def __init__(self, sizes: Ints, size: int, seed: int) -> None:
        if size < 1:
            raise InputError(f"data.batch.size must be at least 1, received {size}.")
        self.sizes, self.size, self.seed = sizes, size, seed
        self._begin = 0
        self.set_epoch(0)

    @property
    def sampler(self) -> TrainSteps:
        """Lightning calls `set_epoch` of a batch sampler's sampler, and of nothing else."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the plan of an epoch."""
        self.steps = plan_epoch(self.sizes, self.size, seed=self.seed, epoch=epoch)

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch, for the next iteration only."""
        self.set_epoch(epoch)
        self._begin = step

    def __iter__(self) -> Iterator[list[int]]:
        begin, self._begin = self._begin, 0
        return iter(self.steps[begin:])

    def __len__(self) -> int:
        return len(self.steps)


class EvalSteps(Sampler[list[int]]):
    """Batch sampler of validation: every structure once, in order."""

    def __init__(self, structures: int, size: int) -> None:
        self.steps = [list(range(n, min(n + size, structures))) for n in range(0, structures, size)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)
