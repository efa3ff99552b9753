"""nequip.radial_convolution/1 in parts of the edges, each with weights that are made again and then forgotten.

With R = X M the weights, X the hidden layer and M the matrix, and d_R the derivative of nequip.convolution/1 by R:

    backward   d_X = d_R M'    d_M = X' d_R
    double     directions x and m of X and M are the direction B = x M + X m of R, and with of_R for it
               S by X = of_R M' + d_R m'    S by M = X' of_R + x' d_R

All that is as wide as the weights (R, B, d_R, of_R) takes `LARGEST_WEIGHTS` bytes together, however many edges there
are.

A part begins and ends anywhere in the edges: an atom with edges in two of them gets two sums, which are added up. So
the number of parts follows from sizes alone, and no device is waited for. Parts are added up in their order. Each costs
one more pass over all atoms, of which there is one for some 50 edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nequip_core.ops.contracts import LARGEST_WEIGHTS
from nequip_kernels.convolution.operators import convolve, convolve_backward, convolve_double_backward
from nequip_kernels.launch import like

ALIGNED = 64
"""Parts begin at multiples of it where as many edges fit: Triton has other code for rows that are not aligned."""


class Edges(NamedTuple):
    """What there is of each edge, and of the graph.

    Attributes:
        harmonics: [edges, components].
        hidden: [edges, width].
        neighbor: [edges].
        row_ptr: [atoms + 1], and all others as in `nequip_core.graph.Graph`.
        by_neighbor: [edges].
        neighbor_ptr: [atoms + 1].
    """

    harmonics: Tensor
    hidden: Tensor
    neighbor: Tensor
    row_ptr: Tensor
    by_neighbor: Tensor
    neighbor_ptr: Tensor

    @property
    def graph(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the convolution's operators take it."""
        return self.neighbor, self.row_ptr, self.by_neighbor, self.neighbor_ptr

    def parts(self, matrix: Tensor, alive: int) -> Iterator[tuple[slice, Edges]]:
        """Consecutive edges, at least one part, and which they are.

        Args:
            matrix: [width, num_weights].
            alive: tensors as wide as the weights that are needed at a time.
        """
        edges, of_edge = self.hidden.shape[0], alive * matrix.shape[1] * matrix.element_size()
        fitting = max(LARGEST_WEIGHTS // of_edge, 1)
        step = fitting // ALIGNED * ALIGNED or fitting
        if edges <= step:
            yield slice(0, edges), self
            return
        for first in range(0, edges, step):
            stop = min(first + step, edges)
            yield slice(first, stop), self._between(first, stop)

    def _between(self, first: int, stop: int) -> Edges:
        """Some edges, counted from the first of them, and all atoms."""
        kept = (self.by_neighbor >= first) & (self.by_neighbor < stop)
        before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        places = torch.nonzero_static(kept, size=stop - first).squeeze(1)
        return Edges(
            harmonics=self.harmonics[first:stop],
            hidden=self.hidden[first:stop],
            neighbor=self.neighbor[first:stop],
            row_ptr=self.row_ptr.clamp(first, stop) - first,
            by_neighbor=self.by_neighbor.index_select(0, places) - first,
            neighbor_ptr=before.index_select(0, self.neighbor_ptr),
        )


class Sum:
    """Tensors that are added up, into the first of them."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """One more, which nobody else uses."""
        self._value = term if self._value is None else self._value.add_(term)

    @property
    def value(self) -> Tensor:
        """Of at least one."""
        assert self._value is not None
        return self._value


def _ready(tensor: Tensor) -> None:
    """A kernel before the first product: a thread of autograd has no CUDA context before, of which cuBLAS warns."""
    tensor.new_zeros(())


def forward(h: Tensor, matrix: Tensor, all_edges: Edges, spec: str) -> Tensor:
    """Messages summed to their centres."""
    out = Sum()
    for _, edges in all_edges.parts(matrix, alive=1):
        out.add(convolve.compute(h, edges.harmonics, edges.hidden @ matrix, *edges.graph, spec))
    return out.value


def backward(
    h: Tensor, matrix: Tensor, grad: Tensor, all_edges: Edges, spec: str, *, with_matrix: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by h, harmonics, hidden, and matrix if that is asked for (else an empty tensor)."""
    _ready(h)
    d_h, d_harmonics, d_hidden, d_matrix = Sum(), like(all_edges.harmonics), like(all_edges.hidden), Sum()
    for place, edges in all_edges.parts(matrix, alive=2):
        of_h, d_harmonics[place], d_weights = convolve_backward.compute(
            h, edges.harmonics, edges.hidden @ matrix, grad, *edges.graph, spec
        )
        d_h.add(of_h)
        d_hidden[place] = d_weights @ matrix.mT
        if with_matrix:
            d_matrix.add(edges.hidden.mT @ d_weights)
        del d_weights  # before those of the next part are made
    return d_h.value, d_harmonics, d_hidden, d_matrix.value if with_matrix else matrix.new_empty(0)


def double_backward(
    h: Tensor,
    matrix: Tensor,
    grad: Tensor,
    to_h: Tensor,
    to_harmonics: Tensor,
    to_hidden: Tensor,
    to_matrix: Tensor | None,
    all_edges: Edges,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by grad, h, harmonics, hidden and matrix of sums of the first derivatives times directions."""
    _ready(h)
    of_grad, of_h, of_matrix = Sum(), Sum(), Sum()
    of_harmonics, of_hidden = like(all_edges.harmonics), like(all_edges.hidden)
    for place, edges in all_edges.parts(matrix, alive=3):
        weights, moving = edges.hidden @ matrix, to_hidden[place]
        *_, d_weights = convolve_backward.compute(h, edges.harmonics, weights, grad, *edges.graph, spec)
        of_matrix.add(moving.mT @ d_weights)
        by_hidden = d_weights.new_zeros(()) if to_matrix is None else d_weights @ to_matrix.mT
        del d_weights
        to_weights = moving @ matrix
        if to_matrix is not None:
            to_weights.addmm_(edges.hidden, to_matrix)
        by_grad, by_h, of_harmonics[place], of_weights = convolve_double_backward.compute(
            h, edges.harmonics, weights, grad, to_h, to_harmonics[place], to_weights, *edges.graph, spec
        )
        of_grad.add(by_grad)
        of_h.add(by_h)
        of_hidden[place] = by_hidden + of_weights @ matrix.mT
        of_matrix.add(edges.hidden.mT @ of_weights)
        del weights, to_weights, of_weights  # before those of the next part are made
    return of_grad.value, of_h.value, of_harmonics, of_hidden, of_matrix.value
