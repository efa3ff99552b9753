"""One atomistic system in NumPy, with its labels, and the map between its types and the model's indices.

Units are eV and Å throughout (`nequip_core.units`); stress is dE/dstrain / V, tension positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from nequip_core.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def source_of(file: str | Path, frame: int) -> str:
    """Where a structure came from: a file, and the number of the frame in it, from 0 as in ASE."""
    return f"{file} frame {frame}"


def file_and_frame(source: str) -> tuple[str, int | None]:
    """The file and the frame's number of what `source_of` wrote; of any other source itself and None."""
    file, _, frame = source.rpartition(" frame ")
    return (file, int(frame)) if file and frame.isdecimal() else (source, None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Structure:
    """One system: atoms, cell, and whatever labels are known.

    Attributes:
        positions: [N, 3], Å; may lie outside the cell.
        numbers: [N], atomic numbers.
        cell: [3, 3], Å, rows are lattice vectors; zero rows where there is none.
        pbc: [3], which directions are periodic.
        type_names: [N] names of types finer than elements, or None: the element symbols.
        energy: eV, or None where unlabelled.
        forces: [N, 3], eV/Å, or None.
        stress: [3, 3], eV/Å³, tension positive, or None.
        weight: factor of this structure in the loss.
        config_type: row of the error tables, or None.
        source: where it came from, for messages; of a file's frame as `source_of` writes it.
    """

    positions: Floats
    numbers: Ints
    cell: Floats
    pbc: NDArray[np.bool_]
    type_names: tuple[str, ...] | None = None
    energy: float | None = None
    forces: Floats | None = None
    stress: Floats | None = None
    weight: float = 1.0
    config_type: str | None = None
    source: str = ""

    @classmethod
    def from_ase(cls, atoms: Atoms, *, type_names: tuple[str, ...] | None = None, source: str = "") -> Self:
        """The atoms and the cell, without labels (`nequip_core.data.read` finds labels by their names)."""
        return cls(
            positions=np.array(atoms.positions, dtype=np.float64),
            numbers=np.array(atoms.numbers, dtype=np.int64),
            cell=np.array(atoms.cell.array, dtype=np.float64),
            pbc=np.array(atoms.pbc, dtype=bool),
            type_names=type_names,
            source=source or atoms.get_chemical_formula(),
        )

    def to_ase(self) -> Atoms:
        """ASE's atoms without labels; type names become the array ``type``."""
        atoms = Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)
        if self.type_names is not None:
            atoms.set_array("type", np.array(self.type_names))
        return atoms

    def validate(self) -> None:
        """Check what no model can work with.

        Raises:
            InputError: numbers that are not finite, an unknown element, a cell that does not span its periodic
                directions or is left-handed, a weight below zero.
        """
        where = self.source or "structure"
        for name in ("positions", "cell", "energy", "forces", "stress", "weight"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value).all():
                numbers = np.atleast_1d(value)
                first = np.argwhere(~np.isfinite(numbers))[0]
                place = f" of atom {first[0]}" if name in ("positions", "forces") else ""
                raise InputError(
                    f"{where}: {name} has {numbers[tuple(first)]}{place}. Expected finite numbers; remove the label or "
                    "the frame."
                )
        if len(self) and not ((self.numbers >= 1) & (self.numbers < len(chemical_symbols))).all():
            bad = sorted(set(self.numbers[(self.numbers < 1) | (self.numbers >= len(chemical_symbols))].tolist()))
            raise InputError(f"{where}: atomic number {bad} is no element. Expected 1 to {len(chemical_symbols) - 1}.")
        periodic = self.cell[self.pbc]
        if len(periodic) and np.linalg.matrix_rank(periodic) < len(periodic):
            raise InputError(
                f"{where}: periodic along {self.pbc.tolist()}, but the cell {self.cell.tolist()} does not span these "
                "directions. Set the lattice vectors, or pbc to F."
            )
        if self.pbc.all() and np.linalg.det(self.cell) < 0:
            raise InputError(
                f"{where}: the cell's volume is negative ({np.linalg.det(self.cell):.3f} Å³): its vectors are "
                "left-handed. Exchange two lattice vectors."
            )
        if self.weight < 0:
            raise InputError(f"{where}: weight {self.weight} is below zero. Expected 0 or more.")

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def symbols(self) -> tuple[str, ...]:
        """[N] element symbols."""
        return tuple(chemical_symbols[z] for z in self.numbers)

    @property
    def volume(self) -> float | None:
        """Å³; None unless periodic in all three directions."""
        return abs(float(np.linalg.det(self.cell))) if self.pbc.all() else None


@dataclass(frozen=True)
class TypeMap:
    """The names of a model's types, in index order, and the element of each."""

    names: tuple[str, ...]
    elements: tuple[str, ...]

    def indices(self, structure: Structure) -> Ints:
        """[N] index of each atom's type.

        Raises:
            InputError: an atom's type is none of the model's, or is declared as another element than the atom.
        """
        table = {name: index for index, name in enumerate(self.names)}
        names = structure.type_names if structure.type_names is not None else structure.symbols
        unknown = sorted(set(names) - set(table))
        if unknown:
            raise InputError(
                f"{structure.source or 'structure'}: atoms of type {', '.join(unknown)}, unknown to the model. "
                f"Its types are {', '.join(self.names)}: leave these frames out, or take a model that knows them."
            )
        indices = np.array([table[name] for name in names], dtype=np.int64)
        declared = np.array([atomic_numbers[symbol] for symbol in self.elements])
        wrong = np.flatnonzero(declared[indices] != structure.numbers)
        if len(wrong):
            atom = int(wrong[0])
            raise InputError(
                f"{structure.source or 'structure'}: atom {atom} is {structure.symbols[atom]} and of type "
                f"{names[atom]}, which the model declares as {self.elements[indices[atom]]} (model.elements). "
                f"{len(wrong)} atoms of this structure are so."
            )
        return indices
