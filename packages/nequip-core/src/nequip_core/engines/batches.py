"""Graphs of batches of structures: listed by a library on the CPU, or together on the device. Both give the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from nequip_core.data.loader import micro_batches
from nequip_core.graph import Graph, build_graph, collate, to
from nequip_core.plugins.records import NeighborListEntry
from nequip_core.skin import SkinGraph, serves
from nequip_core.structure import Floats, Ints, Structure

BatchGraphs = Callable[[Sequence[Structure], Sequence[Ints], int | None], Iterator[Graph]]
"""``(structures, types [N] of each, most edges)`` -> the graph of a batch, or of pieces of it with at most so many."""


def batch_graphs(neighbor_list: NeighborListEntry, pair_cutoffs: Floats, device: torch.device) -> BatchGraphs:
    """What makes the graphs, on the device.

    Args:
        neighbor_list: the registry's record of a neighbour list.
        pair_cutoffs: [types, types], Å, [type of centre, type of neighbour].
        device: of the graphs.
    """
    kind = OnDevice if serves(neighbor_list, device) else OnHost
    return kind(neighbor_list, pair_cutoffs, device)


class OnHost:
    """Structures are listed one after the other, by a library; arguments as those of `batch_graphs`."""

    def __init__(self, neighbor_list: NeighborListEntry, pair_cutoffs: Floats, device: torch.device) -> None:
        self._list = neighbor_list.make.load()(float(pair_cutoffs.max()), 0.0)
        self._pair_cutoffs = pair_cutoffs
        self._device = device

    def __call__(self, batch: Sequence[Structure], types: Sequence[Ints], max_edges: int | None) -> Iterator[Graph]:
        """See `BatchGraphs`."""
        graphs = [self._graph(structure, of) for structure, of in zip(batch, types, strict=True)]
        edges = np.array([graph.edge_shift.shape[0] for graph in graphs])
        for piece in micro_batches(range(len(graphs)), edges, max_edges):
            yield to(collate([graphs[n] for n in piece]), self._device)

    def _graph(self, one: Structure, types: Ints) -> Graph:
        pairs = self._list(one.positions, one.cell, one.pbc)
        return build_graph(one.positions, types, pairs, one.cell, self._pair_cutoffs, one.source)


class OnDevice:
    """Structures are listed together, on the device; arguments as those of `batch_graphs`."""

    def __init__(self, neighbor_list: NeighborListEntry, pair_cutoffs: Floats, device: torch.device) -> None:
        self._graph = SkinGraph(neighbor_list, pair_cutoffs, 0.0, device)

    def __call__(self, batch: Sequence[Structure], types: Sequence[Ints], max_edges: int | None) -> Iterator[Graph]:
        """See `BatchGraphs`."""
        whole = self._of(batch, types, range(len(batch)))
        if max_edges is None or whole.edge_shift.shape[0] <= max_edges:
            yield whole
            return
        edges = whole.row_ptr[whole.structure_ptr].diff().cpu().numpy()
        del whole
        for piece in micro_batches(range(len(batch)), edges, max_edges):
            yield self._of(batch, types, piece)

    def _of(self, batch: Sequence[Structure], types: Sequence[Ints], piece: Sequence[int]) -> Graph:
        some = [batch[n] for n in piece]
        return self._graph.batch(
            np.concatenate([one.positions for one in some]),
            np.concatenate([types[n] for n in piece]),
            np.stack([one.cell for one in some]),
            np.stack([one.pbc for one in some]),
            np.array([len(one) for one in some]),
            [one.source for one in some],
        )
