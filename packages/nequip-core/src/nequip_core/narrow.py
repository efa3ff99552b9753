"""From a graph listed with a skin to the edges within the cut-offs of the moment, as one function of tensors.

Its results have the lengths of the wide graph, so that the device is never waited for; how many of their rows count is
one of them. As torch's operators this is more work than `nequip_core.graph.filter_edges`. Compiled, it is fourteen
kernels that pass over the list a few times; so it is part of compiled files for GPUs (`nequip_core.export.aoti`), and
C++ codes run it like the model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nequip_core.graph import OVERLAP, Graph
from nequip_core.structure import Floats

MOST_EDGES = (2**31 - 1) // 3
"""Of a wide graph: places in its tensors are counted with 32 bits, which Triton's scans need (torch 2.11)."""


class Wide(NamedTuple):
    """A wide graph, with what a step asks of it; see `nequip_core.graph.Graph`.

    Attributes:
        positions: now, Å.
        listed: when neighbours were listed, Å.
        reach: Å, farther from there than which no atom may be.
        types: of atoms.
        edge_index: centre and neighbour.
        edge_shift: Å.
        row_ptr: first edge of each centre.
        by_neighbor: permutation that sorts edges by neighbour.
        neighbor_ptr: first edge, in that order, of each neighbour.
    """

    positions: Float[Tensor, "atoms 3"]
    listed: Float[Tensor, "atoms 3"]
    reach: Float[Tensor, "1"]
    types: Int[Tensor, "atoms"]
    edge_index: Int[Tensor, "2 edges"]
    edge_shift: Float[Tensor, "edges 3"]
    row_ptr: Int[Tensor, "atoms_and_one"]
    by_neighbor: Int[Tensor, "edges"]
    neighbor_ptr: Int[Tensor, "atoms_and_one"]


class Narrow(NamedTuple):
    """The edges within the cut-offs; `graph_of` takes the rows that count.

    Attributes:
        seen: how many atoms are within reach, how many edges are within the cut-offs, how many of these have no length.
        edge_index: all centres, then all neighbours, one after the other.
        edge_shift: Å.
        row_ptr: as in a graph.
        by_neighbor: likewise.
        neighbor_ptr: likewise.
    """

    seen: Int[Tensor, "3"]
    edge_index: Int[Tensor, "2*edges"]
    edge_shift: Float[Tensor, "edges 3"]
    row_ptr: Int[Tensor, "atoms_and_one"]
    by_neighbor: Int[Tensor, "edges"]
    neighbor_ptr: Int[Tensor, "atoms_and_one"]


class Narrowing(nn.Module):
    """The function, for one table of cut-offs, 1 to `MOST_EDGES` edges and as many atoms.

    Args:
        pair_cutoffs: [types, types], Å, [type of centre, type of neighbour].
    """

    square: Tensor

    def __init__(self, pair_cutoffs: Floats) -> None:
        super().__init__()
        self.uniform = bool((pair_cutoffs == pair_cutoffs.max()).all())
        self.largest = float(pair_cutoffs.max())
        self.register_buffer("square", torch.from_numpy(np.array(pair_cutoffs, dtype=np.float64)).square())

    def forward(
        self,
        positions: Tensor,
        listed: Tensor,
        reach: Tensor,
        types: Tensor,
        edge_index: Tensor,
        edge_shift: Tensor,
        row_ptr: Tensor,
        by_neighbor: Tensor,
        neighbor_ptr: Tensor,
    ) -> tuple[Tensor, ...]:
        """The tensors of `Narrow` from those of `Wide`."""
        centre, neighbor = edge_index.unbind(0)
        vectors = positions.index_select(0, neighbor) - positions.index_select(0, centre) + edge_shift
        distance2 = _square(vectors)
        kept = distance2 < self._limit(types, centre, neighbor)
        near = _square(positions - listed) <= reach.square()  # false too where it is not a number
        # Edges kept up to each and it, in both orders; where the k-th of them is.
        kept_by_neighbor = kept.index_select(0, by_neighbor)
        upto, upto_by_neighbor = (marks.cumsum(0, dtype=torch.int32) for marks in (kept, kept_by_neighbor))
        edges = centre.shape[0]
        numbers = torch.arange(1, edges + 1, dtype=torch.int32, device=centre.device)
        row, place = (torch.searchsorted(counts, numbers).clamp(max=edges - 1) for counts in (upto, upto_by_neighbor))
        total = upto.narrow(0, edges - 1, 1)
        both = torch.arange(2 * edges, device=centre.device)
        is_neighbor = both >= total
        of = row.index_select(0, torch.where(is_neighbor, both - total, both).clamp(max=edges - 1))
        return (
            torch.cat([near.sum().unsqueeze(0), total.long(), (distance2 < OVERLAP**2).sum().unsqueeze(0)]),
            torch.where(is_neighbor, neighbor.index_select(0, of), centre.index_select(0, of)),
            edge_shift.index_select(0, row),
            _before(upto, row_ptr),
            (upto.index_select(0, by_neighbor.index_select(0, place)) - 1).long(),
            _before(upto_by_neighbor, neighbor_ptr),
        )

    def _limit(self, types: Tensor, centre: Tensor, neighbor: Tensor) -> Tensor | float:
        """Cut-offs squared: of all edges, or of each."""
        if self.uniform:
            return self.largest**2
        pair = types.index_select(0, centre) * len(self.square) + types.index_select(0, neighbor)
        return self.square.flatten().index_select(0, pair)


def _square(vectors: Tensor) -> Tensor:
    """Their length squared, written out: a sum over three numbers is not worth a reduction."""
    x, y, z = vectors.unbind(1)
    return x * x + y * y + z * z


def _before(upto: Tensor, edge: Tensor) -> Tensor:
    """How many are kept before an edge."""
    return torch.where(edge > 0, upto.index_select(0, (edge - 1).clamp(min=0)), 0).long()


def wide_of(graph: Graph, listed: Tensor, reach: Tensor) -> Wide:
    """What the function is given for a wide graph with its positions of now."""
    return Wide(
        graph.positions,
        listed,
        reach,
        graph.types,
        graph.edge_index,
        graph.edge_shift,
        graph.row_ptr,
        graph.by_neighbor,
        graph.neighbor_ptr,
    )


def graph_of(wide: Graph, narrow: Narrow, edges: int) -> Graph:
    """The narrow graph: the rows of ``narrow`` that count, contiguous."""
    return wide._replace(
        edge_index=narrow.edge_index[: 2 * edges].view(2, edges),
        edge_shift=narrow.edge_shift[:edges],
        row_ptr=narrow.row_ptr,
        by_neighbor=narrow.by_neighbor[:edges],
        neighbor_ptr=narrow.neighbor_ptr,
    )
