"""Many structures as a few long arrays: they fit into memory, or stay on the disk and are mapped into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from nequip_core.data.cache import Stored
from nequip_core.structure import Ints, Structure, file_and_frame, source_of


class Frames(Sequence[Structure]):
    """A sequence of structures, each made when it is asked for.

    Args:
        stored: columns of all structures, see `columns`.
        numbers: [n] rows of the structures that belong to the sequence, in its order; None: all.

    Attributes:
        begin: [S] row of the first atom of every stored structure.
    """

    def __init__(self, stored: Stored, numbers: Ints | None = None) -> None:
        self.stored = stored
        self.arrays: Mapping[str, NDArray[Any]] = stored.arrays
        pointers = np.asarray(stored.arrays["atom_ptr"], dtype=np.int64)
        self.begin, self._count = pointers[:-1], np.diff(pointers)
        self.numbers = np.arange(len(self._count)) if numbers is None else np.asarray(numbers, dtype=np.int64)

    @classmethod
    def of(cls, structures: Iterable[Structure]) -> Self:
        """The same structures as columns."""
        return structures if isinstance(structures, cls) else cls(columns(structures))

    def take(self, numbers: Sequence[int] | Ints) -> Self:
        """Some of the structures, without copying them."""
        return type(self)(self.stored, self.numbers[np.asarray(numbers, dtype=np.int64)])

    def column(self, name: str) -> NDArray[Any]:
        """[n, ...] a value of each structure."""
        values: NDArray[Any] = self.arrays[name][self.numbers]
        return values

    def atom_column(self, name: str) -> NDArray[Any]:
        """[atoms, ...] a value of each atom, structure by structure."""
        values: NDArray[Any] = self.arrays[name][self.atom_rows]
        return values

    @cached_property
    def atoms(self) -> Ints:
        """[n] number of atoms of each."""
        counts: Ints = self._count[self.numbers]
        return counts

    @property
    def atom_rows(self) -> Ints:
        """[atoms] rows of the structures' atoms in the columns."""
        return ranges(self.begin[self.numbers], self.atoms)

    def sources(self, numbers: Sequence[int] | Ints) -> list[str]:
        """Where structures came from, for messages."""
        files, rows = self.stored.about["files"], self.numbers[np.asarray(numbers, dtype=np.int64)]
        pairs = zip(self.arrays["file"][rows].tolist(), self.arrays["frame"][rows].tolist(), strict=True)
        return [files[file] if frame < 0 else source_of(files[file], frame) for file, frame in pairs]

    def types(self) -> dict[tuple[str, str], int]:
        """(type name, element symbol) of all atoms, each with the number of a structure that has it."""
        names = self.stored.about["type_names"]
        shape = (len(names) + 1, len(chemical_symbols))
        pairs = np.ravel_multi_index((self.atom_column("type_name") + 1, self.atom_column("numbers")), shape)
        first = np.full(shape, -1)
        first.flat[pairs[::-1]] = np.arange(len(pairs))[::-1]  # of several values for a place the last one stays
        found = np.argwhere(first >= 0).tolist()
        owner = np.searchsorted(np.cumsum(self.atoms), first[first >= 0], side="right").tolist()
        symbols = [chemical_symbols[z] for _, z in found]
        return {
            (symbol if name == 0 else names[name - 1], symbol): n
            for (name, _), symbol, n in zip(found, symbols, owner, strict=True)
        }

    def config_types(self) -> list[str | None]:
        """[n] row of the error tables of each."""
        names = [*self.stored.about["config_types"], None]
        return [names[index] for index in self.column("config_type").tolist()]

    def geometry_hash(self) -> str:
        """Stands for positions, cells and types of all structures in their order."""
        return hashlib.sha256(self.column("geometry").astype("<i8").tobytes()).hexdigest()

    def content_hash(self) -> str:
        """Stands for the labels too."""
        digest = hashlib.sha256(self.geometry_hash().encode())
        for name in ("energy", "has_energy", "has_forces", "weight"):
            digest.update(self.column(name).tobytes())
        digest.update(json.dumps(self.config_types()).encode())
        digest.update(self.atom_column("forces").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Structure: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Structure | Self:
        """A structure, with arrays of its own."""
        if isinstance(index, slice):
            return type(self)(self.stored, self.numbers[index])
        row, columns, about = int(self.numbers[index]), self.arrays, self.stored.about
        atoms = slice(int(self.begin[row]), int(self.begin[row] + self._count[row]))
        names = columns["type_name"][atoms].tolist()
        kind = int(columns["config_type"][row])
        (source,) = self.sources([index])
        return Structure(
            positions=np.array(columns["positions"][atoms]),
            numbers=columns["numbers"][atoms].astype(np.int64),
            cell=np.array(columns["cell"][row]),
            pbc=np.array(columns["pbc"][row]),
            type_names=tuple(about["type_names"][n] for n in names) if any(n >= 0 for n in names) else None,
            energy=float(columns["energy"][row]) if columns["has_energy"][row] else None,
            forces=np.array(columns["forces"][atoms]) if columns["has_forces"][row] else None,
            stress=np.array(columns["stress"][row]) if columns["has_stress"][row] else None,
            weight=float(columns["weight"][row]),
            config_type=None if kind < 0 else about["config_types"][kind],
            source=source,
        )


def columns(structures: Iterable[Structure]) -> Stored:
    """Structures as columns, where unlabelled numbers are zero.

    ``atom_ptr`` [S + 1]; of each atom ``positions``, ``numbers``, ``forces``, ``type_name``; of each structure
    ``cell``, ``pbc``, ``energy``, ``stress``, ``has_*``, ``weight``, ``config_type``, ``file``, ``frame`` and
    ``geometry``, a hash of what is no label. Names are numbers in the lists beside the arrays; -1: none.
    """
    sizes: list[int] = []
    of_atoms: dict[str, list[NDArray[Any]]] = {"positions": [], "numbers": [], "forces": [], "type_name": []}
    of_structures: dict[str, list[Any]] = {name: [] for name in _TYPES}
    tables: dict[str, dict[str, int]] = {"type_names": {}, "config_types": {}, "files": {}}

    def number(table: str, name: str) -> int:
        return tables[table].setdefault(name, len(tables[table]))

    for one in structures:
        atoms = len(one)
        sizes.append(atoms)
        file, frame = file_and_frame(one.source)
        kinds = [-1] * atoms if one.type_names is None else [number("type_names", name) for name in one.type_names]
        for name, array in (
            ("positions", one.positions),
            ("numbers", one.numbers),
            ("forces", np.zeros((atoms, 3)) if one.forces is None else one.forces),
            ("type_name", np.array(kinds, dtype=np.int64)),
        ):
            of_atoms[name].append(array)
        row = {
            "cell": one.cell,
            "pbc": one.pbc,
            "energy": 0.0 if one.energy is None else one.energy,
            "has_energy": one.energy is not None,
            "has_forces": one.forces is not None,
            "stress": np.zeros((3, 3)) if one.stress is None else one.stress,
            "has_stress": one.stress is not None,
            "weight": one.weight,
            "config_type": -1 if one.config_type is None else number("config_types", one.config_type),
            "file": number("files", file),
            "frame": -1 if frame is None else frame,
            "geometry": _geometry(one),
        }
        for name, value in row.items():
            of_structures[name].append(value)
    arrays = {"atom_ptr": np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])}
    for name, dtype in (
        ("positions", np.float64),
        ("numbers", np.int64),
        ("forces", np.float64),
        ("type_name", np.int64),
    ):
        empty = np.zeros((0, 3) if dtype is np.float64 else 0, dtype=dtype)
        arrays[name] = np.concatenate([empty, *of_atoms.pop(name)])
    for name, (shape, dtype) in _TYPES.items():
        arrays[name] = np.array(of_structures.pop(name), dtype=dtype).reshape(-1, *shape)
    return Stored(arrays, {name: list(table) for name, table in tables.items()})


_TYPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "cell": ((3, 3), np.float64),
    "pbc": ((3,), np.bool_),
    "energy": ((), np.float64),
    "has_energy": ((), np.bool_),
    "has_forces": ((), np.bool_),
    "stress": ((3, 3), np.float64),
    "has_stress": ((), np.bool_),
    "weight": ((), np.float64),
    "config_type": ((), np.int64),
    "file": ((), np.int64),
    "frame": ((), np.int64),
    "geometry": ((), np.int64),
}


def _geometry(structure: Structure) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for array, kind in ((structure.positions, "<f8"), (structure.cell, "<f8"), (structure.numbers, "<i8")):
        digest.update((np.asarray(array, dtype=kind) + 0).tobytes())  # of -0.0 and 0.0 the same
    digest.update(np.asarray(structure.pbc, dtype=bool).tobytes())
    digest.update("\0".join(structure.type_names or ()).encode())
    return int.from_bytes(digest.digest(), "little", signed=True)


def ranges(begin: Ints, count: Ints) -> Ints:
    """begin[0], begin[0] + 1, ... (count[0] of them), begin[1], ..."""
    before: Ints = np.cumsum(count) - count
    rows: Ints = np.repeat(begin - before, count) + np.arange(int(count.sum()))
    return rows


def ends(count: Ints) -> Ints:
    """[n + 1] where each of n consecutive pieces begins, and the end."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(count, dtype=np.int64)])
