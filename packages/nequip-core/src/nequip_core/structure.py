"""One atomistic system in NumPy, with its labels, and the map between its types and the model's indices.

Units are eV and Å throughout (`nequip_core.units`); stress is dE/dstrain / V, tension positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from nequip_core.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
        source: where it came from, for messages: ``file:frame``.
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
            InputError: an atom's type or element is none of the model's.
        """
        table = {name: index for index, name in enumerate(self.names)}
        names = structure.type_names if structure.type_names is not None else structure.symbols
        unknown = sorted(set(names) - set(table))
        if unknown:
            raise InputError(
                f"{structure.source or 'structure'}: atoms of type {', '.join(unknown)}, unknown to the model. "
                f"Its types are {', '.join(self.names)}."
            )
        return np.array([table[name] for name in names], dtype=np.int64)
