"""A batch in one piece of memory, for the way from a worker to this process, into pinned memory and to a device.

A batch is 23 tensors. Between processes each would be a file of its own, with which a worker took six times as long as
to make the batch alone (64 molecules of 30 atoms); to a device each would be a copy of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from nequip_core.data.batch import Batch
from nequip_core.graph import longest_row, remember_longest_row


class Piece(NamedTuple):
    """One tensor of a batch: where its bytes begin, and what they are."""

    begin: int
    dtype: torch.dtype
    shape: torch.Size


class Packed:
    """A batch on its way.

    Args:
        memory: all bytes.
        pieces: the tensors that they are, in the order of `Batch.tensors`.
        longest_row: edges of the atom that has most; a device would have to be asked for it.
    """

    def __init__(self, memory: Tensor, pieces: list[Piece], longest_row: int) -> None:
        self.memory, self.pieces, self.longest_row = memory, pieces, longest_row

    @classmethod
    def of(cls, batch: Batch, *, pinned: bool = False) -> Self:
        """In pinned memory, or not.

        Wide numbers come first, so that each begins at a multiple of its width.
        """
        tensors = batch.tensors()
        order = sorted(range(len(tensors)), key=lambda n: -tensors[n].element_size())
        begins = [0] * len(tensors)
        end = 0
        for n in order:
            begins[n] = end
            end += tensors[n].nbytes
        pieces = [Piece(begin, one.dtype, one.shape) for begin, one in zip(begins, tensors, strict=True)]
        packed = cls(torch.empty(end, dtype=torch.uint8, pin_memory=pinned), pieces, longest_row(batch.graph))
        torch._foreach_copy_(packed._views(), tensors)
        return packed

    def pin_memory(self) -> Self:
        """The same in pinned memory; torch's loader asks for it."""
        return type(self)(self.memory.pin_memory(), self.pieces, self.longest_row)

    def unpack(self, device: torch.device | str) -> Batch:
        """The batch on a device; each tensor has memory of its own, as compiled code asks where in it one begins."""
        views = type(self)(self.memory.to(device, non_blocking=True), self.pieces, self.longest_row)._views()
        tensors = [torch.empty_like(view) for view in views]
        for dtype in {piece.dtype for piece in self.pieces}:  # of one dtype they are one launch
            chosen = [n for n, piece in enumerate(self.pieces) if piece.dtype is dtype]
            torch._foreach_copy_([tensors[n] for n in chosen], [views[n] for n in chosen])
        batch = Batch.of_tensors(tensors)
        remember_longest_row(batch.graph, self.longest_row)
        return batch

    def _views(self) -> list[Tensor]:
        return [
            self.memory[begin : begin + dtype.itemsize * math.prod(shape)].view(dtype).view(shape)
            for begin, dtype, shape in self.pieces
        ]
