"""What the training set says about scale, shift and density: the numbers that a model starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nequip_core.data.dataset import Dataset
from nequip_core.errors import InputError
from nequip_core.structure import Floats, Structure, TypeMap


@dataclass(frozen=True)
class AtomicEnergies:
    """One energy per type, and how well they were determined.

    Attributes:
        method: least_squares | isolated_atoms | mean | zero | given.
        values: {type: eV}.
        rank: of the composition matrix; below the number of types they are not determined.
        undetermined: types whose energies compositions do not fix.
        residual_rms: of the total energies after subtraction, eV/atom; None without energies.
        message: a sentence when there is something to know.
    """

    method: str
    values: dict[str, float]
    rank: int | None
    undetermined: tuple[str, ...]
    residual_rms: float | None
    message: str


@dataclass(frozen=True)
class Statistics:
    """Of a training set.

    Attributes:
        n_structures: structures.
        n_atoms: atoms in all.
        n_edges: directed edges in all.
        atoms_per_type: {type: atoms}.
        avg_num_neighbors: edges per atom, atoms without neighbours counted.
        avg_num_neighbors_per_type: by the type of the centre.
        forces_rms: over components, eV/Å; None without forces.
        per_atom_energy_mean: eV; None without energies.
        per_atom_energy_std: after subtraction of the atomic energies, eV; None without energies.
        atomic_energies: see there.
    """

    n_structures: int
    n_atoms: int
    n_edges: int
    atoms_per_type: dict[str, int]
    avg_num_neighbors: float
    avg_num_neighbors_per_type: dict[str, float]
    forces_rms: float | None
    per_atom_energy_mean: float | None
    per_atom_energy_std: float | None
    atomic_energies: AtomicEnergies

    def to_json(self) -> dict[str, Any]:
        """For data/statistics.json."""
        return asdict(self)


def compute(
    dataset: Dataset, atomic_energies: str | Mapping[str, float], isolated: Sequence[Structure] = ()
) -> Statistics:
    """Statistics of a training set.

    Args:
        dataset: structures with graphs.
        atomic_energies: least_squares | isolated_atoms | mean | zero | {type: eV}.
        isolated: one-atom structures with energies.

    Raises:
        InputError: a method that needs labels which are not there; a type without a given energy.
    """
    names = dataset.type_map.names
    types = np.concatenate([sample.graph.types.numpy() for sample in dataset])
    degree = np.concatenate([np.diff(sample.graph.row_ptr.numpy()) for sample in dataset])
    atoms = np.bincount(types, minlength=len(names))
    edges = np.bincount(types, weights=degree, minlength=len(names))
    forces = [s.forces.ravel() for s in dataset.structures if s.forces is not None]
    shifts = fit_atomic_energies(dataset, atomic_energies, isolated)
    compositions, energies = _compositions(dataset)
    sizes = compositions.sum(axis=1)
    residuals = (energies - compositions @ np.array([shifts.values[name] for name in names])) / sizes
    return Statistics(
        n_structures=len(dataset),
        n_atoms=len(types),
        n_edges=int(degree.sum()),
        atoms_per_type=dict(zip(names, atoms.tolist(), strict=True)),
        avg_num_neighbors=float(degree.mean()),
        avg_num_neighbors_per_type=dict(zip(names, (edges / np.maximum(atoms, 1)).tolist(), strict=True)),
        forces_rms=float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else None,
        per_atom_energy_mean=float((energies / sizes).mean()) if len(energies) else None,
        per_atom_energy_std=float(residuals.std()) if len(energies) else None,
        atomic_energies=shifts,
    )


def _compositions(dataset: Dataset) -> tuple[Floats, Floats]:
    """[labelled structures, types] atoms of each type, and [labelled structures] total energies in eV."""
    count = len(dataset.type_map.names)
    labelled = [
        (np.bincount(sample.graph.types.numpy(), minlength=count), structure.energy)
        for sample, structure in zip(dataset, dataset.structures, strict=True)
        if structure.energy is not None and len(structure)
    ]
    if not labelled:
        return np.zeros((0, count)), np.zeros(0)
    rows, energies = zip(*labelled, strict=True)
    return np.array(rows, dtype=np.float64), np.array(energies, dtype=np.float64)


def fit_atomic_energies(
    dataset: Dataset, method: str | Mapping[str, float], isolated: Sequence[Structure] = ()
) -> AtomicEnergies:
    """Atomic energies E0 by one of the methods, and what is left of the energies without them."""
    names = dataset.type_map.names
    compositions, energies = _compositions(dataset)
    rank: int | None = None
    undetermined: tuple[str, ...] = ()
    message = ""
    if isinstance(method, Mapping):
        values = _given(method, names)
        label = "given"
    else:
        label = method
        if method in ("least_squares", "mean") and not len(energies):
            raise InputError(
                f"model.atomic_energies={method} needs energies, and no training frame has one. Name the label "
                "(data.keys.energy=...), or give the energies: model.atomic_energies={H: -13.6, ...} or zero."
            )
        if method == "least_squares":
            values, rank, undetermined = _least_squares(compositions, energies, names)
        elif method == "isolated_atoms":
            values = _isolated(isolated, dataset.type_map)
        elif method == "mean":
            values = dict.fromkeys(names, float((energies / compositions.sum(axis=1)).mean()))
        elif method == "zero":
            values = dict.fromkeys(names, 0.0)
        else:
            raise InputError(
                f"model.atomic_energies={method!r}. Expected least_squares, isolated_atoms, mean, zero or {{type: eV}}."
            )
    if undetermined and rank is not None:
        message = (
            f"The compositions of the training set do not determine the atomic energies (rank {rank} of {len(names)}): "
            f"those of {', '.join(undetermined)} are the smallest that fit. Within this set nothing is lost; for other "
            "compositions and isolated atoms give them: model.atomic_energies=isolated_atoms with data.isolated_atoms, "
            "or numbers."
        )
    residual = None
    if len(energies):
        left = (energies - compositions @ np.array([values[name] for name in names])) / compositions.sum(axis=1)
        residual = float(np.sqrt(np.mean(left**2)))
    return AtomicEnergies(label, values, rank, undetermined, residual, message)


def _least_squares(
    compositions: Floats, energies: Floats, names: tuple[str, ...]
) -> tuple[dict[str, float], int, tuple[str, ...]]:
    solution, _, rank, _ = np.linalg.lstsq(compositions, energies, rcond=None)
    # A type is determined when its unit vector lies in the row space of the compositions.
    projector = np.linalg.pinv(compositions) @ compositions
    loose = tuple(name for n, name in enumerate(names) if abs(projector[n, n] - 1) > 1e-8)
    return dict(zip(names, solution.tolist(), strict=True)), int(rank), loose


def _given(method: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    missing = [name for name in names if name not in method]
    if missing:
        raise InputError(
            f"model.atomic_energies has no energy of {', '.join(missing)}. Expected one for each of {names}."
        )
    return {name: float(method[name]) for name in names}


def _isolated(isolated: Sequence[Structure], type_map: TypeMap) -> dict[str, float]:
    found = {
        type_map.names[int(type_map.indices(structure)[0])]: structure.energy
        for structure in isolated
        if len(structure) == 1 and structure.energy is not None
    }
    missing = [name for name in type_map.names if name not in found]
    if missing:
        raise InputError(
            f"model.atomic_energies=isolated_atoms: no one-atom frame with an energy for {', '.join(missing)}. "
            "Put them into the file data.isolated_atoms."
        )
    return {name: float(found[name] or 0.0) for name in type_map.names}
