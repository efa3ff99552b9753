"""The graph of a batch of structures: one value of tensors, whose field order is the exported signature.

Edges go from a centre i (which receives) to a neighbour j within the cut-off; they are sorted by (centre, neighbour),
so that sums over an atom's edges are sums over consecutive rows. Row pointers and permutation are made here, where the
list is made, and never inside a training or simulation step.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Graph(NamedTuple):
    """Atoms and edges of B structures (N atoms, E edges in all).

    Attributes:
        positions: Å.
        types: index of each atom's type.
        edge_index: row 0 the centre i, row 1 the neighbour j; sorted by (i, j).
        edge_shift: cartesian shift S·cell of the neighbour, Å: the edge vector is x_j - x_i + shift.
        structure: the structure of each atom.
        structure_ptr: atoms of structure b are structure_ptr[b]:structure_ptr[b+1].
        row_ptr: edges with centre i are row_ptr[i]:row_ptr[i+1].
        by_neighbor: permutation that sorts the edges by (neighbour, centre).
        neighbor_ptr: edges with neighbour j are by_neighbor[neighbor_ptr[j]:neighbor_ptr[j+1]].
        local: whether an atom's energy counts; False for ghosts.
    """

    positions: Float[Tensor, "atoms 3"]
    types: Int[Tensor, "atoms"]
    edge_index: Int[Tensor, "2 edges"]
    edge_shift: Float[Tensor, "edges 3"]
    structure: Int[Tensor, "atoms"]
    structure_ptr: Int[Tensor, "structures_and_one"]
    row_ptr: Int[Tensor, "atoms_and_one"]
    by_neighbor: Int[Tensor, "edges"]
    neighbor_ptr: Int[Tensor, "atoms_and_one"]
    local: Bool[Tensor, "atoms"]
