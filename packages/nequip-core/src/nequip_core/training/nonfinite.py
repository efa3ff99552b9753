"""A loss that is NaN or infinite: noticed before a checkpoint is written, with the structures that it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from jaxtyping import Float, Int
from torch import Tensor

from nequip_core.files import atomic_write
from nequip_core.structure import Structure
from nequip_core.training.ranks import Wish

Offending = Callable[[Sequence[int]], str]
"""Writes the structures with these numbers to a file and returns a sentence that names them."""


class Found(NamedTuple):
    """A loss that is not finite.

    Attributes:
        loss: over all ranks.
        ids: numbers of the structures of this rank's batch.
        ranks: whose shares of the loss are not finite; empty: only their sum is not.
    """

    loss: float
    ids: list[int]
    ranks: tuple[int, ...] = (0,)


class LossRecord:
    """The losses of an epoch, read from the device a few at a time.

    A loss that is not finite must stop the run before a checkpoint is written, but asking after each step would make
    the CPU wait for the device. So losses and the numbers of their structures are kept, and read when ``every`` have
    come together, at the end of an epoch and before a checkpoint; on the CPU, where reading costs nothing, ``every``
    is 1.

    Attributes:
        every: steps between readings.
        total: of the losses that were read.
        steps: their number.
        last: of them.
        wish: the strongest that a rank has had in these steps.
    """

    def __init__(self) -> None:
        self.every = 1
        self.wish = Wish.GO_ON
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.total = 0.0
        self.steps = 0
        self.last: float | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []

    def add(self, shares: Float[Tensor, "ranks 2"], ids: Int[Tensor, "structures"]) -> Found | None:
        """Take in a step; see `read` for what comes back.

        Args:
            shares: each rank's part of the loss, and its wish.
            ids: numbers of this rank's structures.
        """
        self._unread.append((shares, ids))
        return self.read() if len(self._unread) >= self.every else None

    def read(self) -> Found | None:
        """Read what has come together, up to the first loss that is not finite."""
        if not self._unread:
            return None
        unread, self._unread = self._unread, []
        steps: list[list[list[float]]] = torch.stack([shares for shares, _ in unread]).tolist()
        # One after the other in float64: the sum does not depend on when it was read.
        for shares, (_, ids) in zip(steps, unread, strict=True):
            value = sum(loss for loss, _ in shares)
            self.total += value
            self.steps += 1
            self.last = value
            self.wish = max(self.wish, *(Wish(int(wish)) for _, wish in shares))
            if not math.isfinite(value):
                ranks = tuple(rank for rank, (loss, _) in enumerate(shares) if not math.isfinite(loss))
                return Found(value, ids.tolist(), ranks)
        return None

    def mean(self) -> float | None:
        """Over the steps that were read; None before the first."""
        return self.total / self.steps if self.steps else None


def offending_to(path: str | Path, structures: Callable[[Sequence[int]], Sequence[Structure]]) -> Offending:
    """What writes the structures of a batch to ``path`` (extxyz) and returns a sentence that names them.

    Args:
        path: of the file, replaced if it exists.
        structures: from their numbers in the training set, with labels.
    """

    def offending(ids: Sequence[int]) -> str:
        found = structures(ids)
        with atomic_write(path) as file:
            for structure in found:
                atoms = structure.to_ase()
                labels = {name: getattr(structure, name) for name in ("energy", "forces", "stress")}
                atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in labels.items() if v is not None})
                atoms.info["source"] = structure.source
                write_extxyz(file, atoms)
        return f"The structures of its batch, {', '.join(one.source for one in found)}, are in {path}."

    return offending
