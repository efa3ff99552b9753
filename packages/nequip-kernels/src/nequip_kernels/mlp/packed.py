"""The weights of a network as its kernels read them: one tensor, in which every piece of a product is in order.

Tensor cores multiply TF32 numbers and read the factor that is shared by all rows with its inner axis side by side. So
each matrix is there twice, for products with it and with its transpose, and as two TF32 numbers for each of its own:
the rounded one and the rest. Widths are filled up with zeros to multiples of `UNIT`, so that no kernel needs to ask
where a matrix ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from nequip_core.ops.contracts import ScalarMLPSpec

UNIT = 64
"""Widths of all pieces divide it."""

INNER = 32
"""Width of a piece that is read from memory."""

FEW = 8
"""Sums of so few products are rounded so little in float32 that three products of tensor cores are not as good."""


@dataclass(frozen=True)
class Matrix:
    """A layer's weights, for one kind of product.

    Attributes:
        layer: its number.
        transposed: for products with the transposed matrix, whose inner axis are the layer's outputs.
        inner: widths of the tensors that the product is summed over.
        outer: widths of the tensors that it gives.
        start: place of its first number.
        split: whether it is two numbers for each.
    """

    layer: int
    transposed: bool
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    start: int
    split: bool

    @property
    def columns(self) -> int:
        """Length of the inner axis."""
        return sum(map(filled, self.inner))

    @property
    def rows(self) -> int:
        """Length of the outer axis."""
        return sum(map(filled, self.outer))

    @property
    def size(self) -> int:
        """Numbers of one copy."""
        return self.rows * self.columns

    def column(self, part: int) -> int:
        """The first of a tensor on the inner axis."""
        return sum(map(filled, self.inner[:part]))

    def row(self, part: int) -> int:
        """The first of a tensor on the outer axis."""
        return sum(map(filled, self.outer[:part]))


def filled(width: int) -> int:
    """The next multiple of `UNIT`."""
    return -(-width // UNIT) * UNIT


@cache
def matrices(spec: ScalarMLPSpec, dtype: torch.dtype) -> dict[tuple[int, bool], Matrix]:
    """All matrices, by layer and whether they are transposed."""
    found: dict[tuple[int, bool], Matrix] = {}
    start = 0
    for layer in range(spec.layers):
        ins = spec.inputs if layer == 0 else (spec.hidden[layer - 1],)
        outs = spec.outputs if layer == spec.layers - 1 else (spec.hidden[layer],)
        for transposed, inner, outer in ((False, ins, outs), (True, outs, ins)):
            split = dtype == torch.float32 and sum(inner) >= FEW
            one = found[layer, transposed] = Matrix(layer, transposed, inner, outer, start, split)
            start += one.size * (2 if split else 1)
    return found


def length(spec: ScalarMLPSpec, dtype: torch.dtype) -> int:
    """Numbers of the packed tensor."""
    last = matrices(spec, dtype)[spec.layers - 1, True]
    return last.start + last.size * (2 if last.split else 1)
