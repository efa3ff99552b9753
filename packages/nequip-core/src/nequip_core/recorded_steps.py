"""Steps of systems that move, recorded for a number of edges that changes.

A recording (`nequip_core.recording`) repeats what it did, with tensors of the same sizes; from step to step the number
of edges within the cut-offs is another one. So it has room for a few more, and the edges without use belong to atoms of
their own, behind those of the systems, and are longer than any cut-off: the graph is a valid one, and they add exact
zeros. Which atom has which of them is fixed when the step is recorded, as is all else that does not change.

A step is two recordings, the graph and the model. The first tells whether the step is right, so the host reads that
and does all that is left to do while the device is at the second. The list is a third, before them in each step with
which neighbours are listed anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nequip_core.errors import CheckError
from nequip_core.export.artifact import LoadedModel
from nequip_core.graph import Graph
from nequip_core.narrow import Narrow, Wide
from nequip_core.potential import Prediction
from nequip_core.recording import Record, Recording, Told
from nequip_core.skin import FixedEdges, Listed
from nequip_core.structure import Floats

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

NEAR_CELLS = 0.01
"""Largest difference of two cells, of their largest number, that are one cell which changes."""

STEPS_BETWEEN = 20
"""Steps in cells that change, from one recording to another that is made because the first did not serve."""

TOLERANCE = {"float32": 5e-5, "float64": 1e-9}
"""Largest difference between a step and its recording, of the largest number."""

SWITCH = "NEQUIP_RECORD_STEPS"
"""Environment variable; 0: no step is recorded."""

_log = logging.getLogger(__name__)

Narrows = Callable[[list[Tensor]], list[Tensor]]

Fixed = Callable[[Listed, int, int, Tensor], FixedEdges | None]
"""`nequip_core.skin.SkinGraph.fixed`."""


class RecordedSteps:
    """Steps with the neighbours of one list after another, by one recording as long as they fit.

    Args:
        record: records a function.
        loaded: the model.
        narrow: of the model, see `nequip_core.narrow`.
        reach: Å, how far an atom may go before neighbours are listed anew.
        unit: of the positions that come, Å.
        fixed: makes what lists neighbours again.

    Attributes:
        due: whether neighbours should be listed anew now, and not by a recording.
        anew: whether a recording lists them with the next step.
    """

    def __init__(
        self, record: Record, loaded: LoadedModel, narrow: Narrows, reach: float, unit: float, fixed: Fixed
    ) -> None:
        self.record, self.narrow, self.potential, self.fixed = record, narrow, loaded.potential, fixed
        self.reach, self.unit = reach, unit
        self.tolerance = TOLERANCE[loaded.info.dtype]
        # From an atom to an image of itself beyond every cut-off; not along an axis, where harmonics have zeros.
        self._far = 4 * loaded.info.cutoff * torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64, device=loaded.device)
        self.due = self.anew = self._few = False
        self._recorded: _Recorded | None = None
        self._list: _List | None = None
        self._launched: Listed | None = None  # systems whose list can not be recorded, so that it is not tried again
        self._told = Told(loaded.device)
        self._room: _Room
        self._given: list[Tensor] = []  # where positions, and what is watched, are copied to
        self._virials = False
        self._of: Listed | None = None
        self._latest: Listed | None = None
        self._since = STEPS_BETWEEN  # steps since one was recorded
        self._most = RECORDED_EDGES

    def take(
        self, listed: Listed | None, positions: Tensor, watched: Tensor | None, edges: int, prediction: Prediction
    ) -> None:
        """Serve the steps that come with this list, after one with so many edges.

        A list that comes for the first time may be for one step only; it is not worth a recording, unless it fits the
        one that is there, or cells change little by little, and with them the list.

        Raises:
            CheckError: the recording gives another prediction.
        """
        before, known = self._latest, listed is self._latest
        self._latest, self._of, self.due, self.anew = listed, None, False, False
        self._since += 1
        pairs = 0 if listed is None else listed.wide.edge_shift.shape[0]
        if listed is None or not 0 < pairs <= self._most:
            self._recorded = self._list = None
            return
        virials = prediction.atomic_virial is not None or self._virials
        if self._recorded is not None and self._room.holds(edges, pairs) and virials == self._virials:
            inputs = self._inputs(listed, self._room, watched)
            if _alike(self._recorded.graph.inputs, inputs):
                torch._foreach_copy_(self._recorded.graph.inputs, inputs)
                self._of = listed
                if self._list is not None and not self._list.moves_to(listed):
                    self._list = None
                again = not known and before is not None and _are_same(listed, before)
                if self._list is None and again and not (self._launched and _are_same(listed, self._launched)):
                    self._list = self._record_list(self._recorded.graph, listed)
                return
        changes = before is not None and _changes(listed, before) and self._since >= STEPS_BETWEEN
        if known or changes:
            self._recorded = self._list = None
            self._virials, self._of, self._since = virials, listed, 0
            try:
                self._room = _Room.around(listed.wide, edges)
                self._recorded = self._record(self._inputs(listed, self._room, watched))
            except torch.OutOfMemoryError:
                _log.warning("There is no memory to record steps of %s pairs; they are launched one by one.", pairs)
                self._most = pairs - 1
            else:
                wide, rest = _parts(self._recorded.graph.inputs)
                self._given = [wide.positions[: len(listed.types)], rest.watched]
                self._check(positions, watched, prediction)

    def move_to(self, cells: Floats, watched: Tensor | None) -> bool:
        """Serve steps of the same systems in other cells, the first of which lists neighbours.

        Args:
            cells: [B, 3, 3], Å.
            watched: of now.

        Returns:
            False: no recorded list does so.

        Raises:
            InputError: a cell has no volume where it is periodic.
        """
        if self._recorded is None or self._list is None or self._few:
            return False
        _, rest = _parts(self._recorded.graph.inputs)
        if watched is not None and not _alike([watched], [rest.unchanged]):
            return False
        if not self._list.edges.move_to(cells):
            return False
        if watched is not None:
            rest.unchanged.copy_(watched)
        self._of, self.anew, self.due = self._list.systems, True, False
        return True

    def __call__(self, positions: Tensor, watched: Tensor | None, *, atomic_virial: bool) -> Prediction | None:
        """Begin a step: the prediction, if it `holds`; None where the recording does not serve."""
        recorded = self._recorded
        if recorded is None or self._of is None or (atomic_virial and not self._virials):
            return None
        now = [positions] if watched is None else [positions, watched]
        given = self._given[: len(now)]
        if not _alike(given, now):
            return None
        torch._foreach_copy_(given, now)
        self._since += 1
        if self.anew:
            assert self._list is not None
            self._list.recording.repeat()
            self.anew = False
        recorded.graph.repeat()
        self._told.tell(recorded.graph.outputs[0])
        recorded.model.repeat()
        energy, atomic_energy, forces, virial, *of_atoms = recorded.model.outputs
        return Prediction(energy, atomic_energy, forces, virial, of_atoms[0] if atomic_virial else None)

    def holds(self) -> bool:
        """Whether the step was one of this list, whose edges there was room for. Its graph is waited for."""
        assert self._of is not None
        near, edges, overlaps, lacking, *changed = self._told.read()
        moved = near < len(self._of.types) + self._room.atoms
        held = edges <= self._room.edges and not overlaps and not lacking and not any(changed)
        if moved:  # once with a list, so that another look at the device does not matter
            held = held and self._is_within_reach()
        if lacking:
            self._list = None
        if not held:
            self._of = None
        self._few = edges < self._room.fewest  # and all should be recorded anew
        self.anew = bool(moved and held and self._list is not None and not self._few)
        self.due = moved and not self.anew
        return bool(held)

    def _is_within_reach(self) -> bool:
        assert self._recorded is not None
        wide, _ = _parts(self._recorded.graph.inputs)
        moved = wide.positions * self.unit - wide.listed
        return bool((moved.square().sum(1) <= self.reach**2).all())  # no number is not

    def _check(self, positions: Tensor, watched: Tensor | None, expected: Prediction) -> None:
        if not all(tensor.isfinite().all() for tensor in expected if tensor is not None):
            self._recorded = None  # what is no number can not be compared; it is for who asked
            return
        found = self(positions, watched, atomic_virial=expected.atomic_virial is not None)
        assert found is not None
        held = self.holds()
        for name, ours, theirs in zip(Prediction._fields, found, expected, strict=True):
            if ours is None or theirs is None:
                continue
            difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3))
            if not (held and difference <= self.tolerance):
                self._recorded = None
                raise CheckError(
                    f"A recorded step is not the step: {name} differs by {difference:.1e} of the largest number (at "
                    f"most {self.tolerance:.0e}). This is our fault: please report it. To go on, set {SWITCH}=0."
                )

    def _inputs(self, listed: Listed, room: _Room, watched: Tensor | None) -> list[Tensor]:
        """Of a list, with pairs beyond the cut-off up to the room that there is, and atoms without use."""
        graph, of_atoms = listed.wide, (0, room.atoms)
        pairs, more = graph.edge_shift.shape[0], room.pairs - graph.edge_shift.shape[0]
        wide = Wide(
            positions=pad(graph.positions / self.unit, (0, 0, *of_atoms)),
            listed=pad(graph.positions, (0, 0, *of_atoms)),
            reach=graph.positions.new_full((1,), SOON * self.reach),
            types=pad(graph.types, of_atoms),
            edge_index=pad(graph.edge_index, (0, more)),
            edge_shift=torch.cat([graph.edge_shift, self._far.expand(more, 3)]),
            row_ptr=pad(graph.row_ptr, of_atoms, value=pairs),
            by_neighbor=torch.cat([graph.by_neighbor, torch.arange(pairs, room.pairs, device=graph.types.device)]),
            neighbor_ptr=pad(graph.neighbor_ptr, of_atoms, value=pairs),
        )
        watched = graph.positions.new_empty(0) if watched is None else watched.to(graph.positions)
        # Atoms without use belong to the last structure.
        structure_ptr = graph.structure_ptr.clone()
        structure_ptr[-1] += room.atoms
        structure = pad(graph.structure, of_atoms, value=len(structure_ptr) - 2)
        lacking = structure_ptr.new_zeros(1)
        return [*wide, *_Rest(watched, watched, lacking, structure, structure_ptr, pad(graph.local, of_atoms))]

    def _record_list(self, graph: Recording, listed: Listed) -> _List | None:
        """What lists neighbours anew, from and to the memory that the recording of the graph reads.

        Raises:
            CheckError: it does not give the list that is there.
        """
        wide, rest = _parts(graph.inputs)
        expected = [tensor.clone() for tensor in graph.inputs]
        try:
            edges = self.fixed(listed, self._room.pairs, self._room.atoms, self._far)
            if edges is None:
                self._launched = listed
                return None

            def list_neighbors(_: Sequence[Tensor]) -> list[Tensor]:
                positions = wide.positions[: len(listed.types)] * self.unit
                found = edges(positions)
                wide.listed[: len(positions)].copy_(positions)
                wide.edge_shift.copy_(found.edge_shift)
                there = [wide.edge_index, wide.row_ptr, wide.by_neighbor, wide.neighbor_ptr, rest.lacking]
                of_list = [found.edge_index, found.row_ptr, found.by_neighbor, found.neighbor_ptr, found.lacking]
                torch._foreach_copy_(there, of_list)
                return []

            made = _List(listed, edges, self.record(list_neighbors, []))
        except torch.OutOfMemoryError:
            _log.warning("There is no memory to record lists of %s pairs; they are launched.", self._room.pairs)
            self._launched = listed
            return None
        made.recording.repeat()
        for name, ours, theirs in zip([*Wide._fields, *_Rest._fields], graph.inputs, expected, strict=True):
            if not torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12):
                raise CheckError(
                    f"A recorded list of neighbours is not the list: {name} differs. This is our fault: please report "
                    f"it. To go on, set {SWITCH}=0."
                )
        return made

    def _record(self, inputs: list[Tensor]) -> _Recorded:
        graph = self.record(self._find_graph, inputs)
        graph.repeat()  # so that the model, which runs once before it is recorded, finds a graph

        def predict(_: Sequence[Tensor]) -> list[Tensor]:
            return self._predict(Graph(*graph.outputs[1:]))

        return _Recorded(graph, self.record(predict, []))

    def _find_graph(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the host has to know, then the graph's tensors. In as few launches as may be."""
        wide, rest = _parts(inputs)
        wide = wide._replace(positions=wide.positions * self.unit)
        found = Narrow(*self.narrow([*wide]))
        # Bits, since these are of the type of what else is seen: it is one launch less.
        changed = rest.watched.view(torch.int64) ^ rest.unchanged.view(torch.int64)
        return [torch.cat([found.seen, rest.lacking, changed.flatten()]), *self._graph(wide, rest, found)]

    def _predict(self, graph: Graph) -> list[Tensor]:
        """The prediction's tensors, of the atoms with use."""
        energy, atomic_energy, forces, virial, of_atoms = self.potential(graph, atomic_virial=self._virials)
        atoms = graph.types.shape[0] - self._room.atoms
        results = [energy, atomic_energy[:atoms], forces[:atoms], virial]
        return results if of_atoms is None else [*results, of_atoms[:atoms]]

    def _graph(self, wide: Wide, rest: _Rest, found: Narrow) -> Graph:
        """The edges that were found, then those without use.

        Where there is no room for all edges the step is in vain, but it must not touch other memory.
        """
        room, last, edges = self._room, self._room.edges, found.seen[1:2]
        used = room.number < edges
        place = torch.addcmul(room.number, room.row, edges)  # neighbours were found where centres end
        index = found.edge_index.index_select(0, place.flatten()).view_as(place)
        by_neighbor = torch.where(used, found.by_neighbor[:last], room.number)
        pointers = torch._foreach_maximum([found.row_ptr, found.neighbor_ptr], [room.ptr, room.ptr])
        numbers = torch._foreach_clamp_max([*pointers, by_neighbor], [last, last, last - 1])
        row_ptr, neighbor_ptr, by_neighbor = numbers
        return Graph(
            positions=wide.positions,
            types=wide.types,
            edge_index=torch.where(used, index, room.owner),
            edge_shift=torch.where(used.unsqueeze(1), found.edge_shift[:last], self._far),
            structure=rest.structure,
            structure_ptr=rest.structure_ptr,
            row_ptr=row_ptr,
            by_neighbor=by_neighbor,
            neighbor_ptr=neighbor_ptr,
            local=rest.local,
        )


class _Recorded(NamedTuple):
    """A step.

    Attributes:
        graph: what the host has to know, then the graph, from a wide graph and the rest.
        model: the prediction, from the memory where that graph is.
    """

    graph: Recording
    model: Recording


class _List(NamedTuple):
    """What lists the neighbours of some systems anew.

    Attributes:
        systems: all but positions and cells stays as it is there.
        edges: what was recorded; a recording keeps no memory that it reads.
        recording: of it.
    """

    systems: Listed
    edges: FixedEdges
    recording: Recording

    def moves_to(self, listed: Listed) -> bool:
        """Whether it is for these systems too; then it is in their cells."""
        return _are_same(listed, self.systems) and self.edges.move_to(listed.cells)


def _are_same(listed: Listed, other: Listed) -> bool:
    return listed.is_of(other.types, other.pbc, other.atoms)


def _changes(listed: Listed, other: Listed) -> bool:
    """Whether systems are the same in cells that differ a little."""
    if not _are_same(listed, other):
        return False
    difference = np.abs(listed.cells - other.cells).max(initial=0.0)
    return bool(0 < difference <= NEAR_CELLS * np.abs(other.cells).max(initial=0.0))


class _Rest(NamedTuple):
    """What a recording reads besides the wide graph.

    Attributes:
        watched: what tells whether the list is still the right one.
        unchanged: ``watched`` of then.
        lacking: how many edges a recorded list had no room for.
        structure: of atoms.
        structure_ptr: first atom of each structure.
        local: whether an atom's energy counts.
    """

    watched: Tensor
    unchanged: Tensor
    lacking: Tensor
    structure: Tensor
    structure_ptr: Tensor
    local: Tensor


def _parts(inputs: Sequence[Tensor]) -> tuple[Wide, _Rest]:
    """Of what a recording reads: the wide graph, with positions in the unit in which they come, and the rest."""
    number = len(Wide._fields)
    return Wide(*inputs[:number]), _Rest(*inputs[number:])


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
        most = min(int(MORE_EDGES * edges) + SPARE, pairs)
        fewest = max(int(FEWER_EDGES * edges) - SPARE, 0)
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
