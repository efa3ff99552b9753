"""Predictions of systems that move: from step to step their neighbours, then the model.

    positions -> graph (`nequip_core.skin`, or `MovingGraph` with a library on the CPU) -> model (`nequip_core.blocks`)

On CUDA a small system waits for launches, and for the number of edges on its way to the host. So where a compiled file
holds both functions, narrow and model, a step is recorded (`nequip_core.recording`): for as many edges as there are and
a few more (`nequip_core.recorded_steps`). What the host has to know of a step it reads when the graph is there and the
model still runs; if that says that the recording did not serve, the step is done again as the first one was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nequip_core.blocks import BlockEdges, Blocks
from nequip_core.errors import InputError
from nequip_core.export.artifact import LoadedModel
from nequip_core.graph import Graph, build_graph, edge_vectors, filter_edges, to
from nequip_core.neighbors import SkinNeighborList
from nequip_core.plugins.records import NeighborListEntry
from nequip_core.potential import Prediction
from nequip_core.recorded_steps import SWITCH, RecordedSteps
from nequip_core.recording import Function, Record, Recorder, Recording
from nequip_core.skin import EXPLODED, Bools, SkinGraph, serves
from nequip_core.structure import Floats, Ints


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
            record = partial(_record, device)
        if record is not None and loaded.narrow is not None and block_edges in ("auto", None):
            fixed = self.graph.fixed
            self._steps = RecordedSteps(record, loaded, loaded.narrow, 0.5 * skin, unit, fixed)

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
        systems = types, cells, pbc, atoms
        if self.graph.listed_for(*systems) or self._move_to(*systems, watched):
            ahead = self.ahead(x, watched=watched, atomic_virial=atomic_virial)
            if ahead is not None:
                kept = ahead.kept()
                if ahead.holds():
                    return kept
        graph = self.graph.batch(x.to(self.device, torch.float64) * self.unit, *systems)
        prediction = self.potential(graph, atomic_virial=atomic_virial)
        if self._steps is not None and self.potential.taken is None:  # what is divided does not fit at once
            self._steps.take(self.graph.listed, x, watched, graph.edge_shift.shape[0], prediction)
        return prediction

    def _move_to(self, types: Ints, cells: Floats, pbc: Bools, atoms: Ints, watched: Tensor | None) -> bool:
        """Whether a recording lists the neighbours of the same systems in other cells."""
        steps, graph = self._steps, self.graph
        if steps is None or not isinstance(graph, SkinGraph) or graph.listed is None:
            return False
        if not (graph.listed.is_of(types, pbc, atoms) and np.isfinite(cells).all() and steps.move_to(cells, watched)):
            return False
        graph.move_to(cells)
        return True

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
        anew = self._steps.anew
        begun = self._steps(positions, watched, atomic_virial=atomic_virial)
        if begun is None:
            return None
        graph.builds += anew
        return Ahead(begun, self._steps, graph)


class Ahead(NamedTuple):
    """A step that the device is at, as if the host knew that it was right.

    Attributes:
        prediction: overwritten by the next step.
        steps: whose it is.
        graph: of the systems.
    """

    prediction: Prediction
    steps: RecordedSteps
    graph: SkinGraph

    def kept(self) -> Prediction:
        """The prediction, which stays."""
        there = [tensor for tensor in self.prediction if tensor is not None]
        # A product is another tensor, in one launch for all of them.
        energy, atomic_energy, forces, virial, *of_atoms = torch._foreach_mul(there, 1.0)
        return Prediction(energy, atomic_energy, forces, virial, of_atoms[0] if of_atoms else None)

    def holds(self) -> bool:
        """Whether it was right, to be asked before the next step. The graph is waited for, the model is not."""
        held = self.steps.holds()
        if self.steps.due:
            self.graph.forget()
        return held


def _record(device: torch.device, function: Function, inputs: Sequence[Tensor]) -> Recording:
    """In memory of its own: that of an earlier recording may still hold results."""
    return Recorder(device)(function, inputs)


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
