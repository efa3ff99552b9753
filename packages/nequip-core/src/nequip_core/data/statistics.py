"""What the training set says about scale, shift and density: the numbers that a model starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from nequip_core.data.cache import NO_CACHE, Cache, Stored
from nequip_core.data.dataset import Dataset
from nequip_core.errors import InputError
from nequip_core.progress import Progress, silent
from nequip_core.structure import Floats, Structure, TypeMap

GROUPS = 20
"""Rows of the table of residuals; what is left over is one row more."""


@dataclass(frozen=True)
class AtomicEnergies:
    """One energy per type, and how well they were determined.

    Attributes:
        method: least_squares | isolated_atoms | mean | zero | given.
        values: {type: eV}.
        rank: of the composition matrix; below the number of types they are not determined.
        fit: the same in words: ``rank 1 of 4``; None unless they were fitted.
        undetermined: types whose energies compositions do not fix.
        residual_rms: of the total energies after subtraction, eV/atom; None without energies.
        residuals: the same by composition, most frequent first: ``{composition, n, mean, rms, max}``, eV/atom.
        message: a sentence when there is something to know.
    """

    method: str
    values: dict[str, float]
    rank: int | None = None
    fit: str | None = None
    undetermined: tuple[str, ...] = ()
    residual_rms: float | None = None
    residuals: tuple[dict[str, Any], ...] = ()
    message: str = ""


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

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `to_json` wrote."""
        energies = {**value["atomic_energies"]}
        energies |= {name: tuple(energies[name]) for name in ("undetermined", "residuals")}
        return cls(**{**value, "atomic_energies": AtomicEnergies(**energies)})


def compute(
    dataset: Dataset,
    atomic_energies: str | Mapping[str, float],
    isolated: Sequence[Structure] = (),
    *,
    cache: Cache = NO_CACHE,
    progress: Progress = silent,
) -> Statistics:
    """Statistics of a whole training set, the same on every rank.

    Args:
        dataset: structures with edges.
        atomic_energies: least_squares | isolated_atoms | mean | zero | {type: eV}.
        isolated: one-atom structures with energies.
        cache: where they are kept.
        progress: told which of three parts are over: counts, forces, atomic energies.

    Raises:
        InputError: a method that needs labels which are not there; a type without a given energy.
    """
    key = {
        **dataset.key,
        "labels": dataset.structures.content_hash(),
        "atomic_energies": atomic_energies,
        "isolated": [[one.symbols, one.type_names, one.energy] for one in isolated],
    }

    def make() -> Stored:
        return Stored({}, _compute(dataset, atomic_energies, isolated, progress).to_json())

    made = cache.get("statistics", key, make)
    return Statistics.from_json(made.about)


def _compute(
    dataset: Dataset, atomic_energies: str | Mapping[str, float], isolated: Sequence[Structure], progress: Progress
) -> Statistics:
    progress("statistics", 0, 3)
    names = dataset.type_map.names
    degree = dataset.degree.astype(np.int64)
    atoms = np.bincount(dataset.types, minlength=len(names))
    edges = np.bincount(dataset.types, weights=degree, minlength=len(names))
    progress("statistics", 1, 3)
    frames = dataset.structures
    forces = frames.atom_column("forces")[np.repeat(frames.column("has_forces"), frames.atoms)]
    forces_rms = float(np.sqrt(np.mean(forces**2))) if len(forces) else None
    progress("statistics", 2, 3)
    shifts = fit_atomic_energies(dataset, atomic_energies, isolated)
    compositions, energies = _compositions(dataset)
    sizes = compositions.sum(axis=1)
    residuals = (energies - compositions @ np.array([shifts.values[name] for name in names])) / sizes
    progress("statistics", 3, 3)
    return Statistics(
        n_structures=len(dataset),
        n_atoms=len(degree),
        n_edges=int(degree.sum()),
        atoms_per_type=dict(zip(names, atoms.tolist(), strict=True)),
        avg_num_neighbors=float(degree.mean()),
        avg_num_neighbors_per_type=dict(zip(names, (edges / np.maximum(atoms, 1)).tolist(), strict=True)),
        forces_rms=forces_rms,
        per_atom_energy_mean=float((energies / sizes).mean()) if len(energies) else None,
        per_atom_energy_std=float(residuals.std()) if len(energies) else None,
        atomic_energies=shifts,
    )


def _compositions(dataset: Dataset) -> tuple[Floats, Floats]:
    """[labelled structures, types] atoms of each type, and [labelled structures] total energies in eV."""
    frames, types = dataset.structures, len(dataset.type_map.names)
    owner = np.repeat(np.arange(len(frames)), frames.atoms)
    counts = np.bincount(owner * types + dataset.types, minlength=len(frames) * types).reshape(len(frames), types)
    labelled = frames.column("has_energy") & (frames.atoms > 0)
    return counts[labelled].astype(np.float64), frames.column("energy")[labelled]


def fit_atomic_energies(
    dataset: Dataset, method: str | Mapping[str, float], isolated: Sequence[Structure] = ()
) -> AtomicEnergies:
    """Atomic energies E0 by one of the methods, and what is left of the energies without them."""
    names = dataset.type_map.names
    compositions, energies = _compositions(dataset)
    rank: int | None = None
    undetermined: tuple[str, ...] = ()
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
    fit = None if rank is None else f"rank {rank} of {len(names)}"
    message = ""
    if undetermined:
        message = (
            f"The compositions of the training set do not determine the atomic energies ({fit}): "
            f"those of {', '.join(undetermined)} are the smallest that fit. Within this set nothing is lost; for other "
            "compositions and isolated atoms give them: model.atomic_energies=isolated_atoms with data.isolated_atoms, "
            "or numbers."
        )
    left = (energies - compositions @ np.array([values[name] for name in names])) / compositions.sum(axis=1)
    return AtomicEnergies(
        method=label,
        values=values,
        rank=rank,
        fit=fit,
        undetermined=undetermined,
        residual_rms=float(np.sqrt(np.mean(left**2))) if len(left) else None,
        residuals=tuple(_residuals(compositions, left, names)),
        message=message,
    )


def _residuals(compositions: Floats, left: Floats, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """A row for each of the most frequent compositions, and one for the rest."""
    found, group, counts = np.unique(compositions, axis=0, return_inverse=True, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:GROUPS]
    for index in frequent.tolist():
        formula = "".join(
            f"{name}{int(count) if count > 1 else ''}" for name, count in zip(names, found[index], strict=True) if count
        )
        yield _residual(formula, left[group.reshape(-1) == index])
    if len(found) > GROUPS:
        yield _residual(f"{len(found) - GROUPS} others", left[~np.isin(group.reshape(-1), frequent)])


def _residual(name: str, left: Floats) -> dict[str, Any]:
    size = np.abs(left)
    return {
        "composition": name,
        "n": len(left),
        "mean": float(left.mean()),
        "rms": float(np.sqrt(np.mean(left**2))),
        "max": float(size.max()),
    }


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
