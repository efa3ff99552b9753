"""Small structures of every kind that models and engines meet, the same at every call.

Three types, of which two are the same element: models may not confuse types with elements. No two atoms are nearer than
1 Å. `CUTOFF` is longer than some of the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import ArrayLike

from nequip_core.structure import Floats, Ints, Structure

CUTOFF = 3.0
"""Å; the distances of the structures are made for it."""

ELEMENTS = {"H": "H", "O": "O", "Ow": "O"}
"""The element of each type."""

TYPES = tuple(ELEMENTS)

ATOMIC_ENERGIES = {"H": -13.587222780835477, "O": -2041.9816003861047, "Ow": -2039.123456789}
"""E0, eV: all differ, none is zero, none is a float32."""


def structure(types: Sequence[str], positions: ArrayLike, cell: Floats | None = None, pbc: str = "FFF") -> Structure:
    """A structure of our types.

    Args:
        types: [N], of `TYPES`.
        positions: [N, 3], Å.
        cell: [3, 3], Å; None: no cell.
        pbc: T or F for each direction.
    """
    return Structure(
        positions=np.array(positions, dtype=np.float64),
        numbers=np.array([atomic_numbers[ELEMENTS[name]] for name in types]),
        cell=np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64),
        pbc=np.array([letter == "T" for letter in pbc]),
        type_names=tuple(types),
    )


def molecule() -> Structure:
    """Six atoms without any symmetry."""
    positions = [
        [0.0, 0.0, 0.0],
        [1.1, 0.2, -0.1],
        [-0.4, 1.2, 0.5],
        [0.3, -0.9, 1.3],
        [1.8, 1.1, 0.9],
        [-1.2, -0.6, -0.8],
    ]
    return structure(["O", "H", "Ow", "H", "H", "O"], positions)


def crystal() -> Structure:
    """Four atoms in a cell of 3.2 to 3.6 Å, periodic in all directions, away from the ideal sites."""
    cell = np.array([[3.4, 0.0, 0.0], [0.3, 3.2, 0.0], [-0.2, 0.4, 3.6]])
    sites = np.array([[0.03, 0.02, 0.0], [0.52, 0.47, 0.05], [0.49, 0.02, 0.54], [-0.02, 0.5, 0.47]])
    return structure(["O", "H", "Ow", "H"], sites @ cell, cell, "TTT")


def skewed() -> Structure:
    """Two atoms in a strongly skewed cell, shorter than the cut-off in every direction."""
    cell = np.array([[2.1, 0.0, 0.0], [1.7, 2.2, 0.0], [-1.5, 1.3, 2.4]])
    return structure(["H", "O"], np.array([[0.1, 0.0, 0.2], [0.55, 0.45, 0.58]]) @ cell, cell, "TTT")


def tiny() -> Structure:
    """One atom whose neighbours are all its own images."""
    return structure(["Ow"], [[0.3, 0.2, 0.1]], np.array([[1.9, 0.1, 0.0], [0.0, 2.2, 0.2], [0.3, 0.0, 2.5]]), "TTT")


def slab() -> Structure:
    """Periodic in two directions; the third lattice vector is none."""
    cell = np.array([[2.9, 0.2, 0.1], [0.4, 3.1, 0.0], [0.0, 0.0, 0.0]])
    positions = [[0.1, 0.2, 0.0], [1.5, 0.3, 0.8], [0.2, 1.7, 1.1], [1.6, 1.8, -0.6]]
    return structure(["O", "H", "Ow", "H"], positions, cell, "TTF")


def wire() -> Structure:
    """Periodic along the second lattice vector only; the others are far shorter than the atoms are apart."""
    cell = np.array([[0.5, 0.1, 0.0], [0.2, 2.7, 0.3], [0.0, 0.1, 0.6]])
    return structure(["H", "O", "Ow"], [[0.0, 0.1, 0.2], [1.2, 0.9, 0.1], [-0.4, 1.4, 1.0]], cell, "FTF")


def outside() -> Structure:
    """The crystal with two of its atoms written lattice vectors away from the cell."""
    return moved(crystal(), np.array([[0, 0, 0], [2, -1, 0], [0, 0, -3], [0, 0, 0]]))


def with_lone_atom() -> Structure:
    """A molecule, and in the middle of its list of atoms one without any neighbour."""
    positions = [[0.0, 0.0, 0.0], [40.0, 1.0, -2.0], [1.2, 0.3, 0.1], [0.2, 1.1, -0.7]]
    return structure(["O", "H", "Ow", "H"], positions)


def atom(name: str = "H") -> Structure:
    """One atom, no cell."""
    return structure([name], [[0.4, -0.3, 0.2]])


def atom_in_box(name: str = "H") -> Structure:
    """One atom in a periodic cell too large for it to see its images."""
    return structure([name], [[0.4, -0.3, 0.2]], 5 * CUTOFF * np.eye(3), "TTT")


def systems() -> dict[str, Structure]:
    """All of them by name, in an order that puts single atoms between others."""
    return {
        "molecule": molecule(),
        "atom": atom("H"),
        "crystal": crystal(),
        "skewed": skewed(),
        "another atom": atom("Ow"),
        "tiny": tiny(),
        "slab": slab(),
        "wire": wire(),
        "atom in a box": atom_in_box("O"),
        "outside": outside(),
        "with a lone atom": with_lone_atom(),
    }


def replaced(old: Structure, *, positions: Floats | None = None, cell: Floats | None = None) -> Structure:
    """The same atoms elsewhere, or in another cell."""
    names = old.type_names if old.type_names is not None else tuple(old.symbols)
    periodic = "".join("FT"[int(flag)] for flag in old.pbc)
    new = old.positions if positions is None else positions
    return structure(names, new, old.cell if cell is None else cell, periodic)


def transformed(old: Structure, matrix: Floats) -> Structure:
    """Every vector x becomes x · matrix.T: a rotation, reflection or strain of atoms and lattice."""
    cell = old.cell @ matrix.T
    # A lattice is also its own negative: reflections keep right-handed lattice vectors.
    return replaced(old, positions=old.positions @ matrix.T, cell=-cell if np.linalg.det(matrix) < 0 else cell)


def permuted(old: Structure, order: Sequence[int] | Ints) -> Structure:
    """The same atoms in another order: atom n is the old atom order[n]."""
    assert old.type_names is not None
    periodic = "".join("FT"[int(flag)] for flag in old.pbc)
    return structure([old.type_names[n] for n in order], old.positions[np.array(order)], old.cell, periodic)


def moved(old: Structure, multiples: Ints) -> Structure:
    """Each atom moved by multiples [N, 3] of the periodic lattice vectors."""
    return replaced(old, positions=old.positions + (multiples * old.pbc) @ old.cell)


def supercell(old: Structure, repeats: tuple[int, int, int]) -> Structure:
    """``repeats`` copies along each lattice vector; the copies follow each other, each with the atoms' old order."""
    assert old.type_names is not None
    offsets = [np.array(n) @ old.cell for n in product(*map(range, repeats))]
    periodic = "".join("FT"[int(flag)] for flag in old.pbc)
    positions = np.concatenate([old.positions + offset for offset in offsets])
    return structure(old.type_names * len(offsets), positions, np.array(repeats)[:, None] * old.cell, periodic)
