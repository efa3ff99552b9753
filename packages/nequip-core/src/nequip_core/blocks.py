"""Strictly local models in blocks of centre atoms: exact, and any number of atoms in the memory there is.

Where an atom's energy depends on its own edges only, a block of atoms with their edges and the neighbours that these
touch is a graph of its own. Its neighbours count as ghosts, whose energies are not summed and whose forces are; the
forces and virials of all blocks add up to those of the whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from nequip_core.errors import InputError
from nequip_core.graph import Graph
from nequip_core.models.base import ModelInfo
from nequip_core.ops.segment import segment_sum
from nequip_core.potential import Prediction

BlockEdges = int | Literal["auto"] | None
"""Edges in a block; "auto": as memory asks, on CUDA; None: all in one."""

PROBE = 1 << 18
"""Edges whose memory is measured. A graph with fewer is never divided by "auto"."""

SHARE = 0.8
"""Of the free memory is for a block; the rest is for what does not grow with its edges, and for fragmentation."""

MEASURED = frozenset({"cuda"})
"""Devices whose memory is watched."""

_log = logging.getLogger(__name__)


class PotentialLike(Protocol):
    """`nequip_core.potential.Potential`, or a compiled model in its place."""

    def __call__(self, graph: Graph, *, atomic_virial: bool = False) -> Prediction:
        """Energies, forces and virials of a graph."""
        ...


class Blocks:
    """A potential that divides a graph where it must.

    With "auto" the memory that an edge takes is measured once, on a part of the first large graph (which resets torch's
    statistics of peak memory). A block that does not fit all the same is halved.

    Args:
        potential: what evaluates a graph.
        info: of its model.
        block_edges: of a block at most, or those of one atom; "auto": as memory asks, on CUDA; None: one block.

    Attributes:
        taken: edges in a block of the last evaluation; None: it was not divided.

    Raises:
        InputError: a number of edges for a model that passes messages, or no positive number.
    """

    def __init__(self, potential: PotentialLike, info: ModelInfo, block_edges: BlockEdges = "auto") -> None:
        if block_edges is not None and block_edges != "auto":
            if block_edges < 1:
                raise InputError(f"A block must hold at least one edge. Received block_edges {block_edges}.")
            if not info.strictly_local:
                raise InputError(
                    f"The model passes messages through {info.message_passing_layers} layers: an atom's energy depends "
                    f"on atoms up to {info.ghost_distance:g} Å away, not on its own edges only, so that it can not be "
                    f"evaluated in blocks of atoms. Received block_edges {block_edges}; leave it out."
                )
        self.potential = potential
        self.info = info
        self.block_edges = block_edges
        self.taken: int | None = None
        self._bytes_per_edge: float | None = None
        self._whole = PROBE  # edges that went through at once, for which the driver is not asked again

    def __call__(self, graph: Graph, *, atomic_virial: bool = False) -> Prediction:
        """What the potential computes, but for the order of sums.

        Raises:
            InputError: with "auto", not even one atom with its edges fits into memory.
        """
        edges = graph.edge_shift.shape[0]
        most = self._most_edges(graph, atomic_virial)
        if most is None:
            return self.potential(graph, atomic_virial=atomic_virial)
        if edges <= most:
            self._take(None, edges)
            try:
                prediction = self.potential(graph, atomic_virial=atomic_virial)
            except torch.OutOfMemoryError:
                if self.block_edges != "auto":
                    raise
                self._whole = PROBE
                most = edges // 2
            else:
                self._whole = max(self._whole, edges)
                return prediction
        return self._divided(graph, most, atomic_virial)

    def _most_edges(self, graph: Graph, atomic_virial: bool) -> int | None:
        """Edges in a block; None: there are no blocks."""
        if self.block_edges != "auto":
            return self.block_edges
        device = graph.positions.device
        if device.type not in MEASURED or not self.info.strictly_local:
            return None
        edges = graph.edge_shift.shape[0]
        if edges <= self._whole:
            return self._whole
        if self._bytes_per_edge is None:
            part = block(graph, 0, _end(graph.row_ptr.cpu(), 0, PROBE)).graph
            for _ in range(2):  # the first time memory is taken for other things too
                used = _peak_memory(lambda: self.potential(part, atomic_virial=atomic_virial), device)
            self._bytes_per_edge = used / part.edge_shift.shape[0]
        return max(1, int(SHARE * _free_memory(device) / self._bytes_per_edge))

    def _divided(self, graph: Graph, most: int, atomic_virial: bool) -> Prediction:
        row_ptr = graph.row_ptr.cpu()
        edges, atoms, structures = int(row_ptr[-1]), len(row_ptr) - 1, len(graph.structure_ptr) - 1
        energy, forces, virial, of_atoms = (
            graph.positions.new_zeros(*shape) for shape in ((atoms,), (atoms, 3), (structures, 3, 3), (atoms, 3, 3))
        )
        number = max(1, -(-edges // max(1, most)))
        most = -(-edges // number)  # as many blocks, of one size
        start = 0
        while start < atoms:
            end = _end(row_ptr, start, most)
            part = block(graph, start, end)
            try:
                prediction = self.potential(part.graph, atomic_virial=atomic_virial)
            except torch.OutOfMemoryError as error:
                if self.block_edges != "auto" or end == start + 1:
                    raise InputError(
                        f"{graph.positions.device} has too little memory for a block of {end - start} atoms and "
                        f"{int(row_ptr[end] - row_ptr[start])} edges. Take "
                        f"{'a smaller block_edges' if self.block_edges != 'auto' else 'a device with more memory'}."
                    ) from error
                most = int(row_ptr[end] - row_ptr[start]) // 2
                continue
            energy[start:end] = prediction.atomic_energy[part.centres]
            forces[part.members] += prediction.forces
            virial += prediction.virial
            if prediction.atomic_virial is not None:
                of_atoms[part.members] += prediction.atomic_virial
            start = end
        self._take(most, edges)
        counted = torch.where(graph.local, energy, 0.0)
        return Prediction(
            energy=segment_sum(counted, graph.structure, graph.structure_ptr),
            atomic_energy=energy,
            forces=forces,
            virial=virial,
            atomic_virial=of_atoms if atomic_virial else None,
        )

    def _take(self, most: int | None, edges: int) -> None:
        if most != self.taken:
            how = "at once" if most is None else f"in blocks of at most {most}"
            _log.info("%s edges are evaluated %s.", edges, how)
        self.taken = most


class Block(NamedTuple):
    """Some atoms of a graph with their edges, and the neighbours that these touch.

    Attributes:
        graph: of them; the neighbours are not ``local``.
        members: which atom of the whole each is, ascending.
        centres: which of them are the block's own.
    """

    graph: Graph
    members: Int[Tensor, "members"]
    centres: Int[Tensor, "centres"]


def block(graph: Graph, start: int, end: int) -> Block:
    """The block of the atoms from ``start`` to ``end``. Renumbered: what a model keeps for each atom stays small."""
    first, last = graph.row_ptr[[start, end]].tolist()
    edge_index = graph.edge_index[:, first:last]
    is_member = torch.zeros_like(graph.local)
    is_member[edge_index[1]] = True
    is_member[start:end] = True
    members = is_member.nonzero().squeeze(1)
    number_of = is_member.cumsum(0) - 1
    edge_index = number_of[edge_index]
    centres = number_of[start:end]
    structure = graph.structure[members]
    local = torch.zeros_like(members, dtype=torch.bool)
    local[centres] = graph.local[start:end]
    sorted_neighbor, by_neighbor = edge_index[1].sort(stable=True)
    pointers = torch.cat([graph.row_ptr[members], graph.row_ptr[end : end + 1]]).clamp(first, last) - first
    part = Graph(
        positions=graph.positions[members],
        types=graph.types[members],
        edge_index=edge_index,
        edge_shift=graph.edge_shift[first:last].clone(),  # aligned as compiled models like it
        structure=structure,
        structure_ptr=torch.searchsorted(structure, torch.arange(len(graph.structure_ptr), device=structure.device)),
        row_ptr=pointers,
        by_neighbor=by_neighbor,
        neighbor_ptr=torch.searchsorted(sorted_neighbor, torch.arange(len(members) + 1, device=structure.device)),
        local=local,
    )
    return Block(part, members, centres)


def _end(row_ptr: Int[Tensor, "atoms_and_one"], start: int, most: int) -> int:
    """One past the last atom of a block that begins with ``start`` and has at most so many edges, or one atom."""
    return max(start + 1, int(torch.searchsorted(row_ptr, row_ptr[start] + most, right=True)) - 1)


def _peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch takes for a call beyond what it holds already."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _free_memory(device: torch.device) -> int:
    """Bytes that torch could take, those that it keeps for itself included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
