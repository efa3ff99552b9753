"""Structures ready for a model: types, edges and labels as a few long arrays, cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nequip_core.data.batch import Batch, Denominators, Labels
from nequip_core.data.cache import NO_CACHE, Cache, Stored
from nequip_core.data.frames import Frames, ends, ranges
from nequip_core.errors import InputError
from nequip_core.graph import Graph, edges_of
from nequip_core.neighbors import NeighborList
from nequip_core.progress import Progress, silent
from nequip_core.structure import Floats, Ints, Structure, TypeMap, file_and_frame

LABELS = ("energy", "forces", "stress")
"""In the order of the columns of `Dataset.labelled`."""


class Dataset(Sequence[Batch]):
    """Structures with their edges; ``dataset[n]`` is the batch of one of them.

    Args:
        structures: in the order of their numbers.
        type_map: the model's types.
        pair_cutoffs: [types, types], Å.
        neighbor_list: made for the largest cut-off.
        cache: where edges are kept.
        key: names the neighbour list and its version, for the cache.
        progress: told how far the neighbour lists are.

    Attributes:
        structures: as columns.
        types: [atoms] index of each atom's type.
        degree: [atoms] edges of each atom.
        edges: [structures] edges of each structure.

    Raises:
        InputError: an unknown type, overlapping atoms.
    """

    def __init__(
        self,
        structures: Iterable[Structure],
        type_map: TypeMap,
        pair_cutoffs: Floats,
        neighbor_list: NeighborList,
        *,
        cache: Cache = NO_CACHE,
        key: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.structures = Frames.of(structures)
        self.type_map = type_map
        self.pair_cutoffs = pair_cutoffs
        self.key = {
            **(key or {}),
            "structures": self.structures.geometry_hash(),
            "types": list(zip(type_map.names, type_map.elements, strict=True)),
            "cutoffs": pair_cutoffs.tolist(),
        }
        found = cache.get(
            "edges", self.key, lambda: _edges(self.structures, type_map, pair_cutoffs, neighbor_list, progress)
        ).arrays
        self.types = found["types"]
        self.degree = found["degree"]
        self._neighbor, self._shift, self._by_neighbor = found["neighbor"], found["shift"], found["by_neighbor"]
        self._atom_ptr = ends(self.structures.atoms)
        self._edge_ptr = ends(self.degree)[self._atom_ptr]
        self.edges: Ints = np.diff(self._edge_ptr)

        frames = self.structures
        self._periodic = frames.column("pbc").all(axis=1)
        self._volume = np.where(self._periodic, np.abs(np.linalg.det(frames.column("cell"))), np.nan)
        has_stress = frames.column("has_stress") & self._periodic
        self._has = {"energy": frames.column("has_energy"), "forces": frames.column("has_forces"), "stress": has_stress}
        self.labelled = np.stack(
            [has * each for has, each in zip(self._has.values(), (1, 3 * frames.atoms, 9), strict=True)], axis=1
        )
        """[structures, 3] labelled numbers of each: energies, components of forces, components of stress."""

    def __len__(self) -> int:
        return len(self.structures)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self.batch([n]) for n in range(len(self))[index]]
        return self.batch([range(len(self))[index]])

    @property
    def atoms(self) -> Ints:
        """[structures] number of atoms of each."""
        return self.structures.atoms

    def denominators(self, numbers: Sequence[int]) -> Denominators:
        """How many numbers are labelled in some structures together."""
        return Denominators(*torch.from_numpy(self.labelled[numbers].sum(axis=0).astype(np.float64)))

    def batch(self, numbers: Sequence[int], denominators: Denominators | None = None, *, counts: bool = True) -> Batch:
        """Several structures together.

        Args:
            numbers: of the structures, at least one.
            denominators: of the whole optimizer step; by default these structures are the whole step.
            counts: False: the labels are left out, for a rank that has no structure in a step.
        """
        chosen = np.asarray(numbers, dtype=np.int64)
        frames, rows = self.structures, self.structures.numbers[chosen]
        atoms, edges = frames.atoms[chosen], self.edges[chosen]
        here = ranges(self._atom_ptr[chosen], atoms)  # rows of the atoms in this set's arrays
        there = ranges(frames.begin[rows], atoms)  # and in the columns of all structures
        edge_rows = ranges(self._edge_ptr[chosen], edges)
        atom_ptr, edge_ptr = ends(atoms), ends(edges)
        structure = np.repeat(np.arange(len(chosen)), atoms)
        structure_of_edge = np.repeat(np.arange(len(chosen)), edges)
        degree = self.degree[here].astype(np.int64)
        neighbor = self._neighbor[edge_rows] + atom_ptr[structure_of_edge]
        cell = frames.arrays["cell"][rows]
        shift = np.zeros((len(edge_rows), 3))
        if frames.arrays["pbc"][rows].any():
            # written out, so that a structure's shifts are the same in every batch
            multiples, vectors = self._shift[edge_rows], cell[structure_of_edge]
            for axis in range(3):
                shift += multiples[:, axis, None] * vectors[:, axis]
        graph = Graph(
            positions=_tensor(frames.arrays["positions"][there]),
            types=_tensor(self.types[here].astype(np.int64)),
            edge_index=_tensor(np.stack([np.repeat(np.arange(len(here)), degree), neighbor])),
            edge_shift=_tensor(shift),
            structure=_tensor(structure),
            structure_ptr=_tensor(atom_ptr),
            row_ptr=_tensor(ends(degree)),
            by_neighbor=_tensor(self._by_neighbor[edge_rows] + edge_ptr[structure_of_edge]),
            neighbor_ptr=_tensor(ends(np.bincount(neighbor, minlength=len(here)))),
            local=torch.ones(len(here), dtype=torch.bool),
        )
        has = {name: found[chosen] & counts for name, found in self._has.items()}
        labels = Labels(
            energy=_tensor(frames.arrays["energy"][rows] * has["energy"]),
            has_energy=_tensor(has["energy"]),
            forces=_tensor(frames.arrays["forces"][there] * has["forces"][structure, None]),
            has_forces=_tensor(has["forces"][structure]),
            stress=_tensor(frames.arrays["stress"][rows] * has["stress"][:, None, None]),
            has_stress=_tensor(has["stress"]),
            weight=_tensor(frames.arrays["weight"][rows]),
        )
        return Batch(
            graph=graph,
            cell=_tensor(cell),
            volume=_tensor(self._volume[chosen]),
            labels=labels,
            ids=_tensor(chosen),
            denominators=denominators or self.denominators(numbers),
        )

    def require(self, *labels: str, received: Callable[[], str] = str) -> None:
        """Check that at least one structure has each label; stress counts where all directions are periodic.

        Args:
            labels: of `LABELS`.
            received: says what the files hold.

        Raises:
            InputError: names the label and the file.
        """
        for label in labels:
            if self._has[label].any():
                continue
            file = file_and_frame(self.structures[0].source)[0]
            if self.structures.column(f"has_{label}").any():
                raise InputError(
                    f"{file}: {int(self.structures.column('has_stress').sum())} frames have a stress, but none is "
                    "periodic in all three directions, and only there stress means something. Check pbc and Lattice, "
                    "or set training.loss.stress.weight=0."
                )
            raise InputError(
                " ".join(
                    (
                        f"{file}: no frame has {label}, which the loss trains on.",
                        *filter(None, (received(),)),
                        f"Name the label (data.keys.{label}=...), or set training.loss.{label}.weight=0.",
                    )
                )
            )


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)


def _edges(
    frames: Frames, type_map: TypeMap, pair_cutoffs: Floats, neighbor_list: NeighborList, progress: Progress
) -> Stored:
    """Edges of all structures one after the other; indices count within a structure."""
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("types", "degree", "neighbor", "shift", "by_neighbor")
    }
    for done, one in enumerate(frames, 1):
        types = type_map.indices(one)
        pairs = neighbor_list(one.positions, one.cell, one.pbc)
        centre, neighbor, shift = edges_of(one.positions, types, pairs, one.cell, pair_cutoffs, one.source)
        parts["types"].append(types)
        parts["degree"].append(np.bincount(centre, minlength=len(one)))
        parts["neighbor"].append(neighbor.astype(np.int32))
        parts["shift"].append(shift.astype(np.int32))
        parts["by_neighbor"].append(np.argsort(neighbor, kind="stable").astype(np.int32))
        progress("neighbour lists", done, len(frames))
    empty = {"shift": np.zeros((0, 3), dtype=np.int32)}
    nothing = np.zeros(0, dtype=np.int32)
    return Stored({name: np.concatenate([empty.get(name, nothing), *rows]) for name, rows in parts.items()}, {})
