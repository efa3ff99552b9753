"""Predictions of systems that move: from step to step their neighbours, then the model.

    positions -> graph (`nequip_core.skin`, or `MovingGraph` with a library on the CPU) -> model (`nequip_core.blocks`)

On CUDA a small system waits for launches, and for the number of edges on its way to the host. So where a compiled file
holds both functions, narrow and model, a step is recorded (`nequip_core.recording`): for as many edges as there are and
a few more, which belong to atoms of their own and are longer than any cut-off. What does not change from step to step
is made before. What the host has to know of a step it reads when the step is over; if that says that the recording did
not serve, the step is done again as the first one was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from nequip_core.blocks import BlockEdges, Blocks
from nequip_core.errors import CheckError, InputError
from nequip_core.export.artifact import LoadedModel
from nequip_core.graph import Graph, build_graph, edge_vectors, filter_edges, to
from nequip_core.narrow import Narrow, Wide
from nequip_core.neighbors import SkinNeighborList
from nequip_core.plugins.records import NeighborListEntry
from nequip_core.potential import Prediction
from nequip_core.recording import Function, Record, Recorder, Recording
from nequip_core.skin import EXPLODED, Bools, Listed, SkinGraph, serves
from nequip_core.structure import Floats, Ints

RECORDED_EDGES = 2_000_000
"""Of a wide graph that is recorded, at most: beyond, launches do not matter, and a recording keeps its memory."""

MORE_EDGES, MORE_LISTED = 1.02, 1.05
"""Room in a recording beyond the edges, and the listed pairs, that there were."""

FEWER_EDGES = 0.95
"""Of the edges that there were; with fewer, one atom without use has very many, and the next list is recorded anew."""

SPARE = 256
"""Edges, and listed pairs, besides: shares of few are too few."""

OF_AN_ATOM = 32
"""Edges without use, at least, that one atom without use may have; otherwise as many as other atoms have."""

SOON = 0.9
"""Part of the way at whose end neighbours must be listed anew; after an atom has come so far they are, with the next
step."""

TOLERANCE = {"float32": 5e-5, "float64": 1e-9}
"""Largest difference between a step and its recording, of the largest number."""

SWITCH = "NEQUIP_RECORD_STEPS"
"""Environment variable; 0: no step is recorded."""

_log = logging.getLogger(__name__)

Narrows = Callable[[list[Tensor]], list[Tensor]]


class MovingPotential:
    """A model and systems that move.

    Args:
        loaded: the model.
        neighbor_list: the registry's record of a neighbour list.
        skin: Å, 0 or more; no effect on results.
        block_edges: see `nequip_core.blocks.Blocks`.
        unit: of the positions that come, Å.
        record: how steps are recorded; None: on CUDA as `nequip_core.recording` does, unless `SWITCH` is 0.

    Attributes:
        potential: the model in blocks.
        graph: of the systems from step to step.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        neighbor_list: NeighborListEntry,
        *,
        skin: float,
        block_edges: BlockEdges = "auto",
        unit: float = 1.0,
        record: Record | None = None,
    ) -> None:
        info, device = loaded.info, loaded.device
        cutoffs = np.array(info.pair_cutoffs)
        self.device, self.unit = device, unit
        self.potential = Blocks(loaded.potential, info, block_edges)
        self.graph: MovingGraph | SkinGraph
        self._steps: RecordedSteps | None = None
        if not serves(neighbor_list, device):
            listed = SkinNeighborList(neighbor_list.make.load(), info.cutoff, skin)
            self.graph = MovingGraph(listed, cutoffs, device)
            return
        self.graph = SkinGraph(neighbor_list, cutoffs, skin, device, loaded.narrow)
        if record is None and device.type == "cuda" and os.environ.get(SWITCH) != "0":
            record = _record
        if record is not None and loaded.narrow is not None and block_edges in ("auto", None):
            self._steps = RecordedSteps(record, loaded, loaded.narrow, 0.5 * skin, unit)

    def __call__(
        self,
        positions: Floats | Tensor,
        types: Ints,
        cell: Floats,
        pbc: Bools,
        *,
        watched: Tensor | None = None,
        atomic_virial: bool = False,
    ) -> Prediction:
        """The prediction for one system: [N, 3], [N], [3, 3] Å, [3]; see `batch`."""
        if isinstance(self.graph, SkinGraph):
            atoms = np.array([len(types)])
            systems = positions, types, cell[None], pbc[None], atoms
            return self.batch(*systems, watched=watched, atomic_virial=atomic_virial)
        host = positions.cpu().numpy() if isinstance(positions, Tensor) else positions
        x = host.astype(np.float64) * self.unit
        return self.potential(self.graph(x, types, cell, pbc), atomic_virial=atomic_virial)

    def batch(
        self,
        positions: Floats | Tensor,
        types: Ints,
        cells: Floats,
        pbc: Bools,
        atoms: Ints,
        *,
        watched: Tensor | None = None,
        atomic_virial: bool = False,
    ) -> Prediction:
        """The prediction for B systems, whose atoms follow each other.

        Args:
            positions: [N, 3], in ``unit``.
            types: [N] type indices.
            cells: [B, 3, 3], Å.
            pbc: [B, 3].
            atoms: [B] the number of atoms of each system.
            watched: of any shape; what `ahead` compares with.
            atomic_virial: whether each atom's virial is wanted.

        Raises:
            InputError: positions or cells are not finite; two atoms overlap; a cell has no volume where it is periodic.
            CheckError: a recorded step is not the step.
        """
        assert isinstance(self.graph, SkinGraph)
        x = torch.as_tensor(positions)
        if self.graph.listed_for(types, cells, pbc, atoms):
            ahead = self.ahead(x, watched=watched, atomic_virial=atomic_virial)
            if ahead is not None:
                kept = ahead.kept()
                if ahead.holds():
                    return kept
        graph = self.graph.batch(x.to(self.device, torch.float64) * self.unit, types, cells, pbc, atoms)
        prediction = self.potential(graph, atomic_virial=atomic_virial)
        if self._steps is not None and self.potential.taken is None:  # what is divided does not fit at once
            self._steps.take(self.graph.listed, x, watched, graph.edge_shift.shape[0], prediction)
        return prediction

    def ahead(self, positions: Tensor, *, watched: Tensor | None = None, atomic_virial: bool = False) -> Ahead | None:
        """What `batch` gives with everything but the positions as in its last call, by its recording.

        Args:
            positions: [N, 3], in ``unit``.
            watched: what tells whether everything else is as it was: it equals what `batch` was given.
            atomic_virial: see `batch`.

        Returns:
            None: nothing that was recorded serves. Then, and where it does not hold, it is for `batch` to compute, or
            to say what is wrong.
        """
        graph = self.graph
        if self._steps is None or not isinstance(graph, SkinGraph) or graph.listed is None:
            return None
        begun = self._steps(positions, watched, atomic_virial=atomic_virial)
        return None if begun is None else Ahead(*begun, self._steps, graph)


class Ahead(NamedTuple):
    """A step that the device is at, as if the host knew that it was right.

    Attributes:
        prediction: overwritten by the next step.
        seen: what tells.
        steps: whose it is.
        graph: of the systems.
    """

    prediction: Prediction
    seen: Tensor
    steps: RecordedSteps
    graph: SkinGraph

    def kept(self) -> Prediction:
        """The prediction, which stays."""
        there = [tensor for tensor in self.prediction if tensor is not None]
        # A product is another tensor, in one launch for all of them.
        energy, atomic_energy, forces, virial, *of_atoms = torch._foreach_mul(there, 1.0)
        return Prediction(energy, atomic_energy, forces, virial, of_atoms[0] if of_atoms else None)

    def holds(self) -> bool:
        """Whether it was right. The one time that the device is waited for."""
        held = self.steps.holds(self.seen)
        if self.steps.due:
            self.graph.forget()
        return held


def _record(function: Function, inputs: Sequence[Tensor]) -> Recording:
    """In memory of its own: that of an earlier recording may still hold results."""
    return Recorder(inputs[0].device)(function, inputs)


class RecordedSteps:
    """Steps with the neighbours of one list after another, by one recording as long as they fit.

    Args:
        record: records a function.
        loaded: the model.
        narrow: of the model, see `nequip_core.narrow`.
        reach: Å, how far an atom may go before neighbours are listed anew.
        unit: of the positions that come, Å.

    Attributes:
        due: whether they should be listed anew now.
    """

    def __init__(self, record: Record, loaded: LoadedModel, narrow: Narrows, reach: float, unit: float) -> None:
        self.record, self.narrow, self.potential = record, narrow, loaded.potential
        self.reach, self.unit = reach, unit
        self.tolerance = TOLERANCE[loaded.info.dtype]
        # From an atom to an image of itself beyond every cut-off; not along an axis, where harmonics have zeros.
        self._far = 4 * loaded.info.cutoff * torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64, device=loaded.device)
        self.due = False
        self._recording: Recording | None = None
        self._room: _Room
        self._given: list[Tensor] = []  # where positions, and what is watched, are copied to
        self._virials = False
        self._of: Listed | None = None
        self._latest: Listed | None = None
        self._most = RECORDED_EDGES

    def take(
        self, listed: Listed | None, positions: Tensor, watched: Tensor | None, edges: int, prediction: Prediction
    ) -> None:
        """Serve the steps that come with this list, after one with so many edges.

        A list that comes for the first time may be for one step only; it is not worth a recording, unless it fits the
        one that is there.

        Raises:
            CheckError: the recording gives another prediction.
        """
        known = listed is self._latest
        self._latest, self._of, self.due = listed, None, False
        pairs = 0 if listed is None else listed.wide.edge_shift.shape[0]
        if listed is None or not 0 < pairs <= self._most:
            self._recording = None
            return
        virials = prediction.atomic_virial is not None or self._virials
        if self._recording is not None and self._room.holds(edges, pairs) and virials == self._virials:
            inputs = self._inputs(listed, self._room, watched)
            if _alike(self._recording.inputs, inputs):
                torch._foreach_copy_(self._recording.inputs, [*inputs])
                self._of = listed
                return
        if known:
            self._recording = None
            self._virials, self._of = virials, listed
            try:
                self._room = _Room.around(listed.wide, edges)
                self._recording = self.record(self._step, self._inputs(listed, self._room, watched))
            except torch.OutOfMemoryError:
                _log.warning("There is no memory to record steps of %s pairs; they are launched one by one.", pairs)
                self._most = pairs - 1
            else:
                given = _Inputs(*self._recording.inputs)
                self._given = [given.positions[: len(listed.types)], given.watched]
                self._check(positions, watched, prediction)

    def __call__(
        self, positions: Tensor, watched: Tensor | None, *, atomic_virial: bool
    ) -> tuple[Prediction, Tensor] | None:
        """Begin a step: the prediction, and what tells whether it is right; None where the recording does not serve."""
        recording = self._recording
        if recording is None or self._of is None or (atomic_virial and not self._virials):
            return None
        now = [positions] if watched is None else [positions, watched]
        given = self._given[: len(now)]
        if not _alike(given, now):
            return None
        torch._foreach_copy_(given, now)
        recording.repeat()
        seen, energy, atomic_energy, forces, virial, *of_atoms = recording.outputs
        return Prediction(energy, atomic_energy, forces, virial, of_atoms[0] if atomic_virial else None), seen

    def holds(self, seen: Tensor) -> bool:
        """Whether the step was one of this list, whose edges there was room for. The device is waited for."""
        assert self._of is not None
        near, edges, overlaps, *changed = seen.tolist()
        self.due = near < len(self._of.types) + self._room.atoms
        held = edges <= self._room.edges and not overlaps and not any(changed)
        if self.due:  # once with a list, so that another look at the device does not matter
            held = held and self._is_within_reach()
        if not held:
            self._of = None
        return held

    def _is_within_reach(self) -> bool:
        assert self._recording is not None
        given = _Inputs(*self._recording.inputs)
        moved = given.positions * self.unit - given.listed
        return bool((moved.square().sum(1) <= self.reach**2).all())  # no number is not

    def _check(self, positions: Tensor, watched: Tensor | None, expected: Prediction) -> None:
        if not all(tensor.isfinite().all() for tensor in expected if tensor is not None):
            self._recording = None  # what is no number can not be compared; it is for who asked
            return
        begun = self(positions, watched, atomic_virial=expected.atomic_virial is not None)
        assert begun is not None
        found, seen = begun
        held = self.holds(seen)
        for name, ours, theirs in zip(Prediction._fields, found, expected, strict=True):
            if ours is None or theirs is None:
                continue
            difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3))
            if not (held and difference <= self.tolerance):
                self._recording = None
                raise CheckError(
                    f"A recorded step is not the step: {name} differs by {difference:.1e} of the largest number (at "
                    f"most {self.tolerance:.0e}). This is our fault: please report it. To go on, set {SWITCH}=0."
                )

    def _inputs(self, listed: Listed, room: _Room, watched: Tensor | None) -> _Inputs:
        """Of a list, with pairs beyond the cut-off up to the room that there is, and atoms without use."""
        wide, of_atoms = listed.wide, (0, room.atoms)
        pairs, more = wide.edge_shift.shape[0], room.pairs - wide.edge_shift.shape[0]
        watched = wide.positions.new_empty(0) if watched is None else watched.to(wide.positions)
        # Atoms without use belong to the last structure.
        structure_ptr = wide.structure_ptr.clone()
        structure_ptr[-1] += room.atoms
        return _Inputs(
            positions=pad(wide.positions / self.unit, (0, 0, *of_atoms)),
            watched=watched,
            unchanged=watched,
            listed=pad(wide.positions, (0, 0, *of_atoms)),
            soon=wide.positions.new_full((1,), SOON * self.reach),
            edge_index=pad(wide.edge_index, (0, more)),
            edge_shift=torch.cat([wide.edge_shift, self._far.expand(more, 3)]),
            row_ptr=pad(wide.row_ptr, of_atoms, value=pairs),
            by_neighbor=torch.cat([wide.by_neighbor, torch.arange(pairs, room.pairs, device=wide.types.device)]),
            neighbor_ptr=pad(wide.neighbor_ptr, of_atoms, value=pairs),
            types=pad(wide.types, of_atoms),
            structure=pad(wide.structure, of_atoms, value=len(structure_ptr) - 2),
            structure_ptr=structure_ptr,
            local=pad(wide.local, of_atoms),
        )

    def _step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the host has to know, then the prediction's tensors."""
        given = _Inputs(*inputs)
        positions = given.positions * self.unit
        wide = Wide(
            positions=positions,
            listed=given.listed,
            reach=given.soon,
            types=given.types,
            edge_index=given.edge_index,
            edge_shift=given.edge_shift,
            row_ptr=given.row_ptr,
            by_neighbor=given.by_neighbor,
            neighbor_ptr=given.neighbor_ptr,
        )
        found = Narrow(*self.narrow([*wide]))
        graph = self._graph(given, positions, found)
        energy, atomic_energy, forces, virial, of_atoms = self.potential(graph, atomic_virial=self._virials)
        # Bits, since these are of the type of what else is seen: it is one launch less.
        changed = given.watched.view(torch.int64) ^ given.unchanged.view(torch.int64)
        seen = torch.cat([found.seen, changed.flatten()])
        atoms = given.types.shape[0] - self._room.atoms
        results = [seen, energy, atomic_energy[:atoms], forces[:atoms], virial]
        return results if of_atoms is None else [*results, of_atoms[:atoms]]

    def _graph(self, given: _Inputs, positions: Tensor, found: Narrow) -> Graph:
        """Of the edges that were found, then those without use, in as few launches as may be.

        Where there is no room for all edges the step is in vain, but it must not touch other memory.
        """
        room, edges = self._room, found.seen[1:2]
        last = room.edges
        used = room.number < edges
        place = torch.addcmul(room.number, room.row, edges)  # neighbours were found where centres end
        index = found.edge_index.index_select(0, place.flatten()).view_as(place)
        by_neighbor = torch.where(used, found.by_neighbor[:last], room.number)
        pointers = torch._foreach_maximum([found.row_ptr, found.neighbor_ptr], [room.ptr, room.ptr])
        numbers = torch._foreach_clamp_max([*pointers, by_neighbor], [last, last, last - 1])
        row_ptr, neighbor_ptr, by_neighbor = numbers
        return Graph(
            positions=positions,
            types=given.types,
            edge_index=torch.where(used, index, room.owner),
            edge_shift=torch.where(used.unsqueeze(1), found.edge_shift[:last], self._far),
            structure=given.structure,
            structure_ptr=given.structure_ptr,
            row_ptr=row_ptr,
            by_neighbor=by_neighbor,
            neighbor_ptr=neighbor_ptr,
            local=given.local,
        )


class _Inputs(NamedTuple):
    """What a recording reads: what comes with each step, and then a wide graph, whose last atoms are those without use.

    Attributes:
        positions: in the unit in which they come.
        watched: what tells whether the list is still the right one.
        unchanged: ``watched`` of then.
        listed: positions of then, Å.
        soon: Å, farther from there than which no atom should be.
        edge_index: this and all that follows as in `nequip_core.graph.Graph`.
    """

    positions: Tensor
    watched: Tensor
    unchanged: Tensor
    listed: Tensor
    soon: Tensor
    edge_index: Tensor
    edge_shift: Tensor
    row_ptr: Tensor
    by_neighbor: Tensor
    neighbor_ptr: Tensor
    types: Tensor
    structure: Tensor
    structure_ptr: Tensor
    local: Tensor


class _Room(NamedTuple):
    """For how many edges and listed pairs a recording is, and which atoms have the edges without use.

    Those of the first atom are all from the last edge with use on, up to its own end; the others have as many as usual
    atoms. So whose an edge is does not depend on how many are in use.

    Attributes:
        fewest: edges.
        edges: at most.
        pairs: at most.
        atoms: without use.
        number: [edges] of each edge.
        row: [2, 1], of centres and neighbours.
        owner: [edges] the atom that has this edge, if it is without use.
        ptr: [atoms with and without use, and one] where the edges of each atom without use end, and zeros before.
    """

    fewest: int
    edges: int
    pairs: int
    atoms: int
    number: Tensor
    row: Tensor
    owner: Tensor
    ptr: Tensor

    @classmethod
    def around(cls, wide: Graph, edges: int) -> _Room:
        """For some more, and some less, than these edges and the pairs of a list."""
        atoms, device = wide.types.shape[0], wide.types.device
        pairs = int(MORE_LISTED * wide.edge_shift.shape[0]) + SPARE
        fewest, most = int(FEWER_EDGES * edges) - SPARE, min(int(MORE_EDGES * edges) + SPARE, pairs)
        fewest = max(0, fewest)
        of_each = max(OF_AN_ATOM, edges // atoms)
        number = torch.arange(most, device=device)
        ends = torch.arange(fewest + of_each, most + of_each, of_each, device=device).clamp(max=most)
        return cls(
            fewest=fewest,
            edges=most,
            pairs=pairs,
            atoms=len(ends),
            number=number,
            row=torch.arange(2, device=device).unsqueeze(1),
            owner=atoms + torch.searchsorted(ends, number, right=True),
            ptr=pad(ends, (atoms + 1, 0)),
        )

    def holds(self, edges: int, pairs: int) -> bool:
        """Whether it is for as many."""
        return self.fewest <= edges <= self.edges and pairs <= self.pairs


def _alike(these: Sequence[Tensor], those: Sequence[Tensor]) -> bool:
    return all(a.shape == b.shape for a, b in zip(these, those, strict=True))


class MovingGraph:
    """The graph of one system that moves: listed and sorted on the CPU by a library, filtered on the device each step.

    `nequip_core.skin.SkinGraph` does the same without leaving the device.

    Args:
        neighbors: lists pairs beyond the cut-off, anew when it must.
        pair_cutoffs: [types, types], Å, [type of centre, type of neighbour].
        device: of the graph.
    """

    def __init__(self, neighbors: SkinNeighborList, pair_cutoffs: Floats, device: torch.device) -> None:
        self.neighbors = neighbors
        self.pair_cutoffs = pair_cutoffs
        self.device = device
        self._builds = 0
        self._types: Ints = np.zeros(0, dtype=np.int64)
        self._wide: Graph
        self._cutoffs: Tensor

    def __call__(self, positions: Floats, types: Ints, cell: Floats, pbc: NDArray[np.bool_]) -> Graph:
        """The graph of a configuration: [N, 3] Å, [N], [3, 3] Å, [3].

        Raises:
            InputError: positions or cell are not finite; two atoms overlap.
        """
        if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
            raise InputError(EXPLODED)
        pairs = self.neighbors(positions, cell, pbc)
        if self.neighbors.builds != self._builds or not np.array_equal(types, self._types):
            wide = build_graph(positions, types, pairs, cell, self.pair_cutoffs + self.neighbors.skin)
            self._wide = to(wide, self.device)
            cutoffs = torch.as_tensor(self.pair_cutoffs, device=self.device)
            self._cutoffs = cutoffs[tuple(self._wide.types[self._wide.edge_index])]
            self._types = types.copy()
            self._builds = self.neighbors.builds
        wide = self._wide._replace(positions=torch.tensor(positions, dtype=torch.float64, device=self.device))
        return filter_edges(wide, edge_vectors(wide).norm(dim=1) < self._cutoffs)
