"""The graph of a batch of structures: one value of tensors, whose field order is the exported signature.

Edges go from a centre i (which receives) to a neighbour j within the cut-off; they are sorted by (centre, neighbour),
so that sums over an atom's edges are sums over consecutive rows. Row pointers and permutation are made here, where the
list is made, and never inside a training or simulation step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nequip_core.errors import InputError
from nequip_core.neighbors import NeighborList, Pairs
from nequip_core.structure import Floats, Ints, Structure, TypeMap

OVERLAP = 0.05
"""Atoms nearer than this, Å, are one atom written twice: no data set means it, and gradients are infinite at zero."""


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


def build_graph(
    positions: Floats,
    types: Ints,
    pairs: Pairs,
    cell: Floats,
    pair_cutoffs: Floats,
    source: str = "",
) -> Graph:
    """The graph of one structure from the pairs of a neighbour list.

    Args:
        positions: [N, 3], Å.
        types: [N] type indices.
        pairs: within the largest cut-off or beyond (a skin): filtered here to r < pair_cutoffs[t_i, t_j].
        cell: [3, 3], Å.
        pair_cutoffs: [types, types], Å, [type of centre, type of neighbour].
        source: where the structure came from, for messages.

    Raises:
        InputError: two atoms overlap.
    """
    centre, neighbor, shift = edges_of(positions, types, pairs, cell, pair_cutoffs, source)
    atoms = len(positions)
    return Graph(
        positions=torch.from_numpy(np.array(positions, dtype=np.float64)),
        types=torch.from_numpy(np.ascontiguousarray(types, dtype=np.int64)),
        edge_index=torch.from_numpy(np.stack([centre, neighbor])),
        edge_shift=torch.from_numpy(shift @ cell),
        structure=torch.zeros(atoms, dtype=torch.int64),
        structure_ptr=torch.tensor([0, atoms]),
        row_ptr=_pointers(centre, atoms),
        by_neighbor=torch.from_numpy(np.argsort(neighbor * len(neighbor) + np.arange(len(neighbor)))),
        neighbor_ptr=_pointers(neighbor, atoms),
        local=torch.ones(atoms, dtype=torch.bool),
    )


def edges_of(
    positions: Floats, types: Ints, pairs: Pairs, cell: Floats, pair_cutoffs: Floats, source: str = ""
) -> Pairs:
    """The pairs that are edges, in their order: by centre, then neighbour, then image. Arguments as `build_graph`'s.

    Raises:
        InputError: two atoms overlap.
    """
    centre, neighbor, shift = pairs
    vectors = positions[neighbor] - positions[centre] + shift @ cell
    distance = np.sqrt(np.einsum("ei,ei->e", vectors, vectors))
    if len(distance) and distance.min() < OVERLAP:
        e = int(distance.argmin())
        raise overlap(int(centre[e]), int(neighbor[e]), float(distance[e]), source)
    kept = distance < pair_cutoffs[types[centre], types[neighbor]]
    centre, neighbor, shift = centre[kept], neighbor[kept], shift[kept]
    order = _order(centre, neighbor, shift, len(positions))
    return Pairs(centre[order], neighbor[order], shift[order])


def overlap(centre: int, neighbor: int, distance: float, source: str = "") -> InputError:
    """What is wrong when two atoms are nearer than `OVERLAP`."""
    return InputError(
        f"{source or 'structure'}: atoms {centre} and {neighbor} are {distance:.3f} Å apart. Expected at "
        f"least {OVERLAP} Å between any two; check units, cell and duplicate atoms."
    )


def _order(centre: Ints, neighbor: Ints, shift: Ints, atoms: int) -> Ints:
    """By centre, then neighbour, then image, so that the same structure always gives the same sums."""
    low, high = shift.min(axis=0, initial=0), shift.max(axis=0, initial=0)
    a, b, c = (int(number) for number in high - low + 1)
    if atoms**2 * a * b * c > np.iinfo(np.int64).max:
        return np.asarray(np.lexsort((*shift.T[::-1], neighbor, centre)))
    # One number for each, all different: ten times as quick to sort as five columns.
    x, y, z = (shift - low).T
    order: Ints = np.argsort((((centre * atoms + neighbor) * a + x) * b + y) * c + z)
    return order


def _pointers(index: Ints, segments: int) -> Tensor:
    """Where each segment starts in sorted order, and the end. [segments + 1]."""
    ptr = np.zeros(segments + 1, dtype=np.int64)
    np.cumsum(np.bincount(index, minlength=segments), out=ptr[1:])
    return torch.from_numpy(ptr)


def from_structure(structure: Structure, type_map: TypeMap, pair_cutoffs: Floats, neighbor_list: NeighborList) -> Graph:
    """The graph of one structure."""
    pairs = neighbor_list(structure.positions, structure.cell, structure.pbc)
    return build_graph(
        structure.positions, type_map.indices(structure), pairs, structure.cell, pair_cutoffs, structure.source
    )


def collate(graphs: Sequence[Graph]) -> Graph:
    """One graph of several: rows are concatenated, indices and pointers shifted."""
    if len(graphs) == 1:
        return graphs[0]
    atoms = [0, *np.cumsum([graph.types.shape[0] for graph in graphs]).tolist()]
    edges = [0, *np.cumsum([graph.edge_shift.shape[0] for graph in graphs]).tolist()]
    structures = [0, *np.cumsum([graph.structure_ptr.shape[0] - 1 for graph in graphs]).tolist()]

    def cat(name: str, offsets: list[int] | None = None, dim: int = 0) -> Tensor:
        parts = [getattr(graph, name) for graph in graphs]
        return torch.cat(parts if offsets is None else [p + o for p, o in zip(parts, offsets, strict=False)], dim)

    def pointers(name: str, offsets: list[int]) -> Tensor:
        parts = [getattr(graph, name)[1:] + offset for graph, offset in zip(graphs, offsets, strict=False)]
        return torch.cat([parts[0].new_zeros(1), *parts])

    return Graph(
        positions=cat("positions"),
        types=cat("types"),
        edge_index=cat("edge_index", atoms, dim=1),
        edge_shift=cat("edge_shift"),
        structure=cat("structure", structures),
        structure_ptr=pointers("structure_ptr", atoms),
        row_ptr=pointers("row_ptr", edges),
        by_neighbor=cat("by_neighbor", edges),
        neighbor_ptr=pointers("neighbor_ptr", edges),
        local=cat("local"),
    )


def edge_vectors(graph: Graph) -> Float[Tensor, "edges 3"]:
    """From centre to neighbour, Å: x_j - x_i + shift."""
    centre, neighbor = graph.edge_index.unbind(0)
    return graph.positions.index_select(0, neighbor) - graph.positions.index_select(0, centre) + graph.edge_shift


def to(graph: Graph, device: torch.device | str) -> Graph:
    """The same graph on a device, of which `longest_row` is known."""
    moved = Graph(*(tensor.to(device, non_blocking=True) for tensor in graph))
    if moved.row_ptr.device.type != "cpu" and graph.row_ptr.device.type == "cpu":
        remember_longest_row(moved, longest_row(graph))
    return moved


def remember_longest_row(graph: Graph, edges: int) -> None:
    """Tell `longest_row` what it would ask the graph's device."""
    _longest_rows[graph.row_ptr] = edges


def longest_row(graph: Graph) -> int:
    """Edges of the atom that has most. A device is waited for, unless the graph came there by `to`."""
    known: int | None = _longest_rows.get(graph.row_ptr)
    if known is None:
        known = int(graph.row_ptr.diff().max()) if graph.types.shape[0] else 0
    return known


_longest_rows: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By the row pointers of graphs on devices; kept as long as these live."""


def filter_edges(graph: Graph, kept: Bool[Tensor, "edges"], number: int | None = None) -> Graph:
    """The same atoms with some of the edges; order, pointers and permutation follow without sorting, on the device.

    Args:
        graph: all edges.
        kept: which to keep.
        number: how many they are, if that is known: then nothing is read back from the device.
    """
    # number of kept edges before each edge, in both orders
    kept_by_neighbor = kept[graph.by_neighbor]
    before, before_by_neighbor = (
        torch.nn.functional.pad(marks.cumsum(0), (1, 0)) for marks in (kept, kept_by_neighbor)
    )
    rows = _where(kept, number)
    return graph._replace(
        edge_index=graph.edge_index.index_select(1, rows),
        edge_shift=graph.edge_shift.index_select(0, rows),
        row_ptr=before[graph.row_ptr],
        by_neighbor=before[graph.by_neighbor[_where(kept_by_neighbor, len(rows))]],
        neighbor_ptr=before_by_neighbor[graph.neighbor_ptr],
    )


def _where(marks: Bool[Tensor, "rows"], number: int | None) -> Int[Tensor, "marked"]:
    """Which rows are marked. With their number a device is not waited for; the CPU is quicker without."""
    if number is None or marks.device.type == "cpu":
        return marks.nonzero().squeeze(1)
    return torch.nonzero_static(marks, size=number).squeeze(1)
