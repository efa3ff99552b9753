"""The graph of systems that move, with their neighbours listed on the device of the model.

Neighbours are listed a little beyond the cut-off (Verlet's skin) by a list of tensors. That wide graph stays on the
device, and each step keeps the edges within the cut-off of the moment, in their order, until an atom has moved half the
skin. One read-back a step says whether one has, how many edges there are, and how near two atoms have come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nequip_core.errors import InputError
from nequip_core.graph import OVERLAP, Graph, edge_vectors, filter_edges, overlap
from nequip_core.narrow import MOST_EDGES, Narrow, graph_of, wide_of
from nequip_core.neighbors import DeviceNeighborList
from nequip_core.neighbors.device import FixedList, marked, times
from nequip_core.plugins.records import NeighborListEntry
from nequip_core.structure import Floats, Ints

EXPLODED = (
    "Positions or cell are not finite. A simulation that comes to this has exploded: take a smaller timestep, relax "
    "the first structure, or look at the forces of the model."
)

Bools = NDArray[np.bool_]


class SkinGraph:
    """The graph of one system that moves, or of several together.

    Args:
        neighbor_list: the registry's record of a list that is ``batched`` and serves the device.
        pair_cutoffs: [types, types], Å, [type of centre, type of neighbour].
        skin: Å, 0 or more; no effect on results.
        device: of the graph.
        narrow: `nequip_core.narrow.Narrowing` for these cut-offs, compiled for the device; None: torch's operators.

    Attributes:
        builds: how often neighbours have been listed.
        listed: the systems of the last time; None: none, or `forget`.
    """

    def __init__(
        self,
        neighbor_list: NeighborListEntry,
        pair_cutoffs: Floats,
        skin: float,
        device: torch.device,
        narrow: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> None:
        if skin < 0:
            raise InputError(f"skin must be 0 Å or more, received {skin}.")
        if not serves(neighbor_list, device):
            raise InputError(
                f"The neighbour list {neighbor_list.name!r} does not list tensors on {device.type}: it is for "
                f"{', '.join(sorted(neighbor_list.devices))}{'' if neighbor_list.batched else ' and for NumPy'}. "
                "Take the list named 'device'."
            )
        self.skin = skin
        self.device = device
        self.builds = 0
        self._pair_cutoffs = pair_cutoffs
        self._list: DeviceNeighborList = neighbor_list.make.load()(float(pair_cutoffs.max()), skin)
        self.listed: Listed | None = None
        self._elsewhere = False  # whether the edges of ``listed`` are those of other cells
        self._narrow = narrow
        self._reach = torch.full((1,), 0.5 * skin, dtype=torch.float64, device=device)

    def __call__(self, positions: Floats | Tensor, types: Ints, cell: Floats, pbc: Bools) -> Graph:
        """The graph of one system: [N, 3] Å, [N], [3, 3] Å, [3]; see `batch`."""
        return self.batch(positions, types, cell[None], pbc[None], np.array([len(types)]))

    def batch(
        self,
        positions: Floats | Tensor,
        types: Ints,
        cells: Floats,
        pbc: Bools,
        atoms: Ints,
        sources: Sequence[str] | None = None,
    ) -> Graph:
        """The graph of B systems, whose atoms follow each other. A change of anything but positions lists them anew.

        Args:
            positions: [N, 3], Å.
            types: [N] type indices.
            cells: [B, 3, 3], Å.
            pbc: [B, 3].
            atoms: [B] the number of atoms of each system.
            sources: [B] where each came from, for messages; None: its number.

        Raises:
            InputError: positions or cells are not finite; two atoms overlap; a cell has no volume where it is periodic.
        """
        x = torch.as_tensor(positions, dtype=torch.float64).to(self.device, copy=True).detach().contiguous()
        graph = None
        if self.listed is not None and not self._elsewhere and self.listed_for(types, cells, pbc, atoms):
            graph = self._within_cutoff(self.listed, x, sources)
        if graph is None:
            self.listed, self._elsewhere = self._list_neighbors(x, types, cells, pbc, atoms), False
            self.builds += 1
            graph = self._within_cutoff(self.listed, x, sources)
        assert graph is not None
        return graph

    def listed_for(self, types: Ints, cells: Floats, pbc: Bools, atoms: Ints) -> bool:
        """Whether there is a list of systems that differ in positions at most; arguments as `batch`'s."""
        return self.listed is not None and self.listed.still_holds(types, cells, pbc, atoms)

    def forget(self) -> None:
        """List neighbours anew at the next call."""
        self.listed = None

    def move_to(self, cells: Floats) -> None:
        """Another lists the neighbours of the systems, which are in these cells now."""
        assert self.listed is not None
        self.listed, self._elsewhere = self.listed._replace(cells=cells.copy()), True

    def fixed(self, listed: Listed, edges: int, more_atoms: int, beyond: Tensor) -> FixedEdges | None:
        """Lists neighbours of the same systems again, in tensors of fixed sizes; None: the list can not.

        Args:
            listed: the systems.
            edges: how many there is room for.
            more_atoms: without edges, behind those of the systems.
            beyond: [3] Å, shift of rows that are no edges.
        """
        make = getattr(self._list, "fixed", None)  # a list from a plugin need not have it
        pairs = None if make is None else make(listed.wide.positions, listed.cells, listed.pbc, listed.atoms)
        if pairs is None:
            return None
        cutoffs = self._pair_cutoffs
        uniform = (cutoffs == cutoffs.max()).all()
        limits = None if uniform else torch.from_numpy(cutoffs + self.skin).to(self.device)
        return FixedEdges(pairs, listed, limits, edges, more_atoms, beyond)

    def _list_neighbors(self, x: Tensor, types: Ints, cells: Floats, pbc: Bools, atoms: Ints) -> Listed:
        if not (np.isfinite(cells).all() and torch.isfinite(x).all()):
            raise InputError(EXPLODED)
        centre, neighbor, shift = self._list.pairs(x, cells, pbc, atoms)
        of_structure = torch.from_numpy(atoms).to(self.device)
        structure = torch.arange(len(atoms), device=self.device).repeat_interleave(of_structure, output_size=len(x))
        lattice = torch.from_numpy(np.where(pbc[..., None], cells, 0.0)).to(self.device)
        row_ptr, by_neighbor, neighbor_ptr = _pointers(centre, neighbor, len(x))
        wide = Graph(
            positions=x,
            types=torch.from_numpy(np.array(types, dtype=np.int64)).to(self.device),
            edge_index=torch.stack([centre, neighbor]),
            edge_shift=times(shift, lattice, structure[centre]),
            structure=structure,
            structure_ptr=torch.nn.functional.pad(of_structure.cumsum(0), (1, 0)),
            row_ptr=row_ptr,
            by_neighbor=by_neighbor,
            neighbor_ptr=neighbor_ptr,
            local=torch.ones(len(x), dtype=torch.bool, device=self.device),
        )
        host = types.copy(), cells.copy(), pbc.copy(), atoms.copy()
        cutoffs = self._pair_cutoffs
        if (cutoffs == cutoffs.max()).all():
            return Listed(wide, float(cutoffs.max()), *host)
        of_edge = torch.from_numpy(cutoffs).to(self.device)[tuple(wide.types[wide.edge_index])]
        kept = edge_vectors(wide).norm(dim=1) < of_edge + self.skin
        return Listed(filter_edges(wide, kept), of_edge[kept], *host)

    def _within_cutoff(self, listed: Listed, x: Tensor, sources: Sequence[str] | None) -> Graph | None:
        """The graph of now, or None where an atom has moved too far since neighbours were listed."""
        wide = listed.wide._replace(positions=x)
        if len(x) == 0:
            return wide
        if self._narrow is not None and 0 < len(wide.edge_shift) <= MOST_EDGES:
            found = Narrow(*self._narrow([*wide_of(wide, listed.wide.positions, self._reach)]))
            near, edges, overlaps = found.seen.tolist()
            if near < len(x):
                return None
            if overlaps:
                raise _overlap(wide, edge_vectors(wide).norm(dim=1), sources)
            return graph_of(wide, found, edges)
        distance = edge_vectors(wide).norm(dim=1)
        kept = distance < listed.cutoffs
        moved = (x - listed.wide.positions).square().sum(1).amax()
        seen = torch.stack([moved, kept.sum().double(), *([distance.amin()] if len(distance) else [])]).tolist()
        if not seen[0] <= (0.5 * self.skin) ** 2:  # nor where it is not a number
            return None
        if len(distance) and seen[2] < OVERLAP:
            raise _overlap(wide, distance, sources)
        return filter_edges(wide, kept, int(seen[1]))


def serves(neighbor_list: NeighborListEntry, device: torch.device) -> bool:
    """Whether a list is one of tensors on a device, as `SkinGraph` needs it."""
    return neighbor_list.batched and device.type in neighbor_list.devices


class Listed(NamedTuple):
    """The systems when their neighbours were listed.

    Attributes:
        wide: edges up to the cut-off and the skin.
        cutoffs: of all edges, or of each, Å.
        types: [N] on the host.
        cells: [B, 3, 3], Å.
        pbc: [B, 3].
        atoms: [B].
    """

    wide: Graph
    cutoffs: float | Tensor
    types: Ints
    cells: Floats
    pbc: Bools
    atoms: Ints

    def is_of(self, types: Ints, pbc: Bools, atoms: Ints) -> bool:
        """Whether the systems are the same but for their positions and cells."""
        return self.still_holds(types, self.cells, pbc, atoms)

    def still_holds(self, *now: NDArray[np.generic]) -> bool:
        """Whether types, cells, periodicity and numbers of atoms are those of then."""
        return all(np.array_equal(a, b) for a, b in zip(self[2:], now, strict=True))


class FixedEdges:
    """The edges up to cut-offs and skin of systems, listed in tensors of fixed sizes.

    As `nequip_core.neighbors.device.FixedList`, which finds the pairs, it can be recorded, and keeps what it reads.

    Args:
        pairs: of the systems.
        listed: the systems.
        limits: [types, types] Å, how far edges reach where not all pairs count; None: all do.
        edges: how many there is room for.
        more_atoms: without edges, behind those of the systems.
        beyond: [3] Å, shift of rows that are no edges.
    """

    def __init__(
        self,
        pairs: FixedList,
        listed: Listed,
        limits: Tensor | None,
        edges: int,
        more_atoms: int,
        beyond: Tensor,
    ) -> None:
        self._pairs, self._limits, self._edges, self._beyond = pairs, limits, edges, beyond
        self._atoms = len(listed.types) + more_atoms
        self._types, self._structure = listed.wide.types, listed.wide.structure

    def move_to(self, cells: Floats) -> bool:
        """List edges in these cells from now on, [B, 3, 3] Å; False: not with tensors of these sizes.

        Raises:
            InputError: a cell has no volume where it is periodic.
        """
        return self._pairs.move_to(cells)

    def __call__(self, positions: Tensor) -> WideEdges:
        """The edges; positions are those of the systems' atoms, [N, 3] Å."""
        centre, neighbor, shift, number, lacking = self._pairs(positions)
        used = torch.arange(len(centre), device=positions.device) < number
        of = [index.clamp(max=len(positions) - 1) for index in (centre, neighbor)]  # an atom, in all rows
        shift = times(shift, self._pairs.lattice, self._structure[of[0]])
        if self._limits is not None:
            vector = positions[of[1]] - positions[of[0]] + shift
            used &= vector.norm(dim=1) < self._limits[self._types[of[0]], self._types[of[1]]]
        place, used, number = marked(used, self._edges)
        centre, neighbor = (index[place] for index in of)
        none = ~used
        row_ptr, by_neighbor, neighbor_ptr = _pointers(
            centre.masked_fill(none, self._atoms), neighbor.masked_fill(none, self._atoms), self._atoms
        )
        return WideEdges(
            edge_index=torch.stack([centre, neighbor]).masked_fill(none, 0),
            edge_shift=torch.where(used.unsqueeze(1), shift[place], self._beyond),
            row_ptr=row_ptr,
            by_neighbor=by_neighbor,
            neighbor_ptr=neighbor_ptr,
            lacking=lacking + (number - self._edges).clamp(min=0),
        )


class WideEdges(NamedTuple):
    """As a `Graph` has them, then rows that are no edges.

    Attributes:
        edge_index: centre and neighbour; atom 0 in rows that are none.
        edge_shift: Å.
        row_ptr: first edge of each centre.
        by_neighbor: permutation that sorts edges by neighbour.
        neighbor_ptr: first edge, in that order, of each neighbour.
        lacking: how many edges or candidates there was no room for; if any, edges are missing.
    """

    edge_index: Tensor
    edge_shift: Tensor
    row_ptr: Tensor
    by_neighbor: Tensor
    neighbor_ptr: Tensor
    lacking: Tensor


def _pointers(centre: Tensor, neighbor: Tensor, atoms: int) -> tuple[Tensor, Tensor, Tensor]:
    """``row_ptr``, ``by_neighbor`` and ``neighbor_ptr`` of sorted edges; rows of ``atoms`` and beyond are none."""
    numbers = torch.arange(atoms + 1, dtype=torch.int32, device=centre.device)
    sorted_neighbor, by_neighbor = neighbor.int().sort(stable=True)
    return torch.searchsorted(centre, numbers.long()), by_neighbor, torch.searchsorted(sorted_neighbor, numbers)


def _overlap(graph: Graph, distance: Tensor, sources: Sequence[str] | None) -> InputError:
    edge = int(distance.argmin())
    centre, neighbor = graph.edge_index[:, edge].tolist()
    of = int(graph.structure[centre])
    first = int(graph.structure_ptr[of])
    number = f"structure {of}" if len(graph.structure_ptr) > 2 else ""
    source = number if sources is None else sources[of]
    return overlap(centre - first, neighbor - first, float(distance[edge]), source)
