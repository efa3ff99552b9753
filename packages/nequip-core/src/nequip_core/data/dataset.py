"""Structures ready for a model: types, graphs and label tensors, made once and kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nequip_core.data.batch import Batch, Denominators, Labels
from nequip_core.errors import InputError
from nequip_core.graph import Graph, collate, from_structure
from nequip_core.neighbors import NeighborList
from nequip_core.structure import Floats, Ints, Structure, TypeMap


class Sample(NamedTuple):
    """One structure as tensors; the fields are those of `Batch`."""

    graph: Graph
    cell: Float[Tensor, "1 3 3"]
    volume: Float[Tensor, "1"]
    labels: Labels
    id: int


class Dataset(Sequence[Sample]):
    """Structures with their graphs.

    Args:
        structures: in the order of their numbers.
        type_map: the model's types.
        pair_cutoffs: [types, types], Å.
        neighbor_list: made for the largest cut-off.

    Raises:
        InputError: an unknown type, overlapping atoms.
    """

    def __init__(
        self,
        structures: Iterable[Structure],
        type_map: TypeMap,
        pair_cutoffs: Floats,
        neighbor_list: NeighborList,
    ) -> None:
        self.structures = tuple(structures)
        self.type_map = type_map
        self.pair_cutoffs = pair_cutoffs
        self.samples = tuple(
            Sample(
                graph=from_structure(structure, type_map, pair_cutoffs, neighbor_list),
                cell=torch.from_numpy(structure.cell.copy()).unsqueeze(0),
                volume=torch.tensor([structure.volume or float("nan")], dtype=torch.float64),
                labels=_labels(structure),
                id=number,
            )
            for number, structure in enumerate(self.structures)
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def atoms(self) -> Ints:
        """[structures] number of atoms of each."""
        return np.array([len(structure) for structure in self.structures], dtype=np.int64)

    @property
    def edges(self) -> Ints:
        """[structures] number of edges of each."""
        return np.array([sample.graph.edge_shift.shape[0] for sample in self.samples], dtype=np.int64)

    def require(self, *labels: str) -> None:
        """Check that at least one structure has each label; stress counts where all directions are periodic.

        Raises:
            InputError: names the label and the file.
        """
        for label in labels:
            if not any(getattr(sample.labels, f"has_{label}").any() for sample in self.samples):
                what = "stress and three periodic directions" if label == "stress" else label
                raise InputError(
                    f"{self.structures[0].source.rpartition(':')[0]}: no frame has {what}, which the loss trains on. "
                    f"Name the label (data.keys.{label}=...), or set training.loss.{label}.weight=0."
                )


def _labels(structure: Structure) -> Labels:
    atoms = len(structure)
    stress = structure.stress if structure.pbc.all() else None
    return Labels(
        energy=torch.tensor([structure.energy or 0.0], dtype=torch.float64),
        has_energy=torch.tensor([structure.energy is not None]),
        forces=_tensor(structure.forces, (atoms, 3)),
        has_forces=torch.full((atoms,), structure.forces is not None),
        stress=_tensor(stress, (3, 3)).unsqueeze(0),
        has_stress=torch.tensor([stress is not None]),
        weight=torch.tensor([structure.weight], dtype=torch.float64),
    )


def _tensor(values: Floats | None, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64) if values is None else torch.from_numpy(values.copy())


def make_batch(samples: Sequence[Sample], denominators: Denominators | None = None) -> Batch:
    """Several structures as one batch.

    Args:
        samples: at least one.
        denominators: of the whole optimizer step; by default these structures are the whole step.
    """
    graphs, cells, volumes, labels, ids = zip(*samples, strict=True)
    joined = labels[0] if len(labels) == 1 else Labels(*(torch.cat(field) for field in zip(*labels, strict=True)))
    return Batch(
        graph=collate(graphs),
        cell=torch.cat(cells),
        volume=torch.cat(volumes),
        labels=joined,
        ids=torch.tensor(ids),
        denominators=denominators or count_labels(joined),
    )


def count_labels(labels: Labels) -> Denominators:
    """How many numbers are labelled."""
    return Denominators(
        energy=labels.has_energy.sum().double(),
        forces=3 * labels.has_forces.sum().double(),
        stress=9 * labels.has_stress.sum().double(),
    )
