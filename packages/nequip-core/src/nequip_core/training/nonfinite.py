"""A loss that is NaN or infinite: noticed before a checkpoint is written, with the structures that it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from torch import Tensor

from nequip_core.files import atomic_write
from nequip_core.structure import Structure

Offending = Callable[[Sequence[int]], str]
"""Writes the structures with these numbers to a file and returns a sentence that names them."""


class Found(NamedTuple):
    """A loss that is not finite, and the numbers of the structures of its batch."""

    loss: float
    ids: list[int]


class LossRecord:
    """The losses of an epoch, read from the device a few at a time.

    A loss that is not finite must stop the run before a checkpoint is written, but asking after each step would make
    the CPU wait for the device. So losses and the numbers of their structures are kept, and read when ``every`` have
    come together, at the end of an epoch and before a checkpoint; on the CPU, where reading costs nothing, ``every``
    is 1.
    """

    def __init__(self) -> None:
        self.every = 1
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.total = 0.0
        self.steps = 0
        self.last: float | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, ids: Tensor) -> Found | None:
        """Take in a step; see `read` for what comes back."""
        self._unread.append((loss.detach(), ids))
        return self.read() if len(self._unread) >= self.every else None

    def read(self) -> Found | None:
        """Read what has come together, up to the first loss that is not finite."""
        if not self._unread:
            return None
        unread, self._unread = self._unread, []
        values: list[float] = torch.stack([loss for loss, _ in unread]).tolist()
        # One after the other in float64: the sum does not depend on when it was read.
        for value, (_, ids) in zip(values, unread, strict=True):
            self.total += value
            self.steps += 1
            self.last = value
            if not math.isfinite(value):
                return Found(value, ids.tolist())
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
