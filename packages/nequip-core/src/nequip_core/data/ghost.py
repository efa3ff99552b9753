"""The ghost: a structure without labels and without energy at the end of a batch.

A compiled step serves batches of at least `ATOMS` atoms and `EDGES` edges, in at least two structures (compilers make
other code for fewer). The ghost fills up smaller ones, and it is in every batch, so that all batches are of one kind;
a process that has nothing to do in a step computes the ghost alone. Where steps are recorded as CUDA graphs, which
serve batches of equal sizes only, it also rounds sizes up, so that they repeat.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from nequip_core.data.batch import Batch, Labels
from nequip_core.graph import Graph, collate

ATOMS = 64
EDGES = 256

ROW = 32
"""Edges of an atom of a ghost that rounds up, at most: many would be one long row for one program on a GPU."""


class Ghost(NamedTuple):
    """Appends a ghost to batches.

    Attributes:
        distance: length of its edges, Å: inside every cut-off, where every term of a model is finite.
    """

    distance: float

    def __call__(self, batch: Batch, *, rounded: bool = False) -> Batch:
        """The batch with one more structure; ``ids`` stay those of the others.

        Args:
            batch: without a ghost.
            rounded: whether the numbers of atoms and edges are such as `round_up` gives.
        """
        atoms, edges = batch.graph.types.shape[0], batch.graph.edge_shift.shape[0]
        if rounded:
            edges = round_up(max(EDGES, edges + 1)) - edges
            atoms = round_up(max(ATOMS, atoms - (-edges // ROW))) - atoms
        else:
            atoms, edges = max(1, ATOMS - atoms), max(1, EDGES - edges)
        labels = batch.labels
        no = torch.zeros(1, dtype=torch.bool)
        return batch._replace(
            graph=collate([batch.graph, self.graph(atoms, edges)]),
            cell=torch.cat([batch.cell, torch.zeros(1, 3, 3, dtype=torch.float64)]),
            volume=torch.cat([batch.volume, torch.full((1,), float("nan"), dtype=torch.float64)]),
            labels=Labels(
                energy=torch.cat([labels.energy, torch.zeros(1, dtype=torch.float64)]),
                has_energy=torch.cat([labels.has_energy, no]),
                forces=torch.cat([labels.forces, torch.zeros(atoms, 3, dtype=torch.float64)]),
                has_forces=torch.cat([labels.has_forces, no.expand(atoms)]),
                stress=torch.cat([labels.stress, torch.zeros(1, 3, 3, dtype=torch.float64)]),
                has_stress=torch.cat([labels.has_stress, no]),
                weight=torch.cat([labels.weight, torch.zeros(1, dtype=torch.float64)]),
            ),
        )

    def graph(self, atoms: int, edges: int) -> Graph:
        """Atoms that are each other's neighbours only as their own images, none of them local."""
        centre = torch.arange(edges) * atoms // edges
        shift = torch.zeros(edges, 3, dtype=torch.float64)
        # Not along an axis: there, spherical harmonics have zeros.
        shift[:] = self.distance * torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)
        pointers = torch.nn.functional.pad(torch.bincount(centre, minlength=atoms).cumsum(0), (1, 0))
        return Graph(
            positions=torch.zeros(atoms, 3, dtype=torch.float64),
            types=torch.zeros(atoms, dtype=torch.int64),
            edge_index=torch.stack([centre, centre]),
            edge_shift=shift,
            structure=torch.zeros(atoms, dtype=torch.int64),
            structure_ptr=torch.tensor([0, atoms]),
            row_ptr=pointers,
            by_neighbor=torch.arange(edges),
            neighbor_ptr=pointers,
            local=torch.zeros(atoms, dtype=torch.bool),
        )


def round_up(number: int) -> int:
    """To a multiple of a sixteenth of the power of two below: by at most 6.25 %, 3 % on average."""
    step = max(1, (1 << number.bit_length() - 1) // 16)
    return -(-number // step) * step
