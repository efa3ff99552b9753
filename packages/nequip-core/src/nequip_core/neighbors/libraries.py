"""Neighbour lists of well-kept libraries, on the CPU, and the contract of all lists.

A list is full: every pair appears once from each side, and an atom may be its own neighbour through a periodic image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nequip_core.structure import Floats, Ints


class Pairs(NamedTuple):
    """Directed pairs within a distance, in any order.

    Attributes:
        centre: [E] atom that receives.
        neighbor: [E] atom that sends.
        shift: [E, 3] the neighbour's image in multiples of the lattice vectors: the vector from centre to neighbour is
            x_j - x_i + shift · cell.
    """

    centre: Ints
    neighbor: Ints
    shift: Ints


NeighborList = Callable[[Floats, Floats, NDArray[np.bool_]], Pairs]
"""``(positions [N, 3] Å, cell [3, 3] Å, pbc [3]) -> Pairs`` within the cut-off that it was made with."""


DEFAULT = "vesin"
"""The list that ``auto`` means: the quickest on the CPU, and at ease with atoms far apart."""


def make_matscipy(cutoff: float, skin: float = 0.0) -> NeighborList:
    """matscipy's cell list. Any periodicity, cells smaller than the cut-off, atoms outside the cell."""
    from matscipy.neighbours import neighbour_list

    reach = cutoff + skin

    def pairs(positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> Pairs:
        if len(positions) == 0:
            return _none()
        box, origin = _enclosing_box(positions, cell, pbc, reach)
        i, j, shift = neighbour_list("ijS", cutoff=reach, positions=positions, cell=box, pbc=pbc, cell_origin=origin)
        return Pairs(i.astype(np.int64), j.astype(np.int64), shift.astype(np.int64))

    return pairs


def _none() -> Pairs:
    empty = np.zeros(0, dtype=np.int64)
    return Pairs(empty, empty, np.zeros((0, 3), dtype=np.int64))


def _enclosing_box(positions: Floats, cell: Floats, pbc: NDArray[np.bool_], reach: float) -> tuple[Floats, Floats]:
    """A cell whose non-periodic vectors are orthogonal to the others and enclose all atoms, and its origin."""
    if pbc.all():
        return cell, np.zeros(3)
    box = np.array(cell, dtype=np.float64)
    # The orthogonal complement of the periodic vectors, from a complete QR decomposition.
    basis = np.linalg.qr(cell[pbc].T, mode="complete")[0].T[pbc.sum() :] if pbc.any() else np.eye(3)
    low = (positions @ basis.T).min(axis=0) - reach
    high = (positions @ basis.T).max(axis=0) + reach
    box[~pbc] = basis * (high - low)[:, None]
    return box, low @ basis


def make_vesin(cutoff: float, skin: float = 0.0) -> NeighborList:
    """vesin's cell list. Any periodicity, cells smaller than the cut-off, atoms outside the cell."""
    import vesin

    reach = cutoff + skin
    calculator = vesin.NeighborList(cutoff=reach, full_list=True)

    def pairs(positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> Pairs:
        if len(positions) == 0:
            return _none()
        i, j, shift = calculator.compute(
            points=np.ascontiguousarray(positions), box=_spanning(cell, pbc), periodic=pbc, quantities="ijS"
        )
        return Pairs(i.astype(np.int64), j.astype(np.int64), shift.astype(np.int64))

    return pairs


def _spanning(cell: Floats, pbc: NDArray[np.bool_]) -> Floats:
    """The cell with unit vectors orthogonal to the others where it is not periodic."""
    if pbc.all():
        return cell
    box = np.array(cell, dtype=np.float64)
    box[~pbc] = np.linalg.qr(cell[pbc].T, mode="complete")[0].T[pbc.sum() :] if pbc.any() else np.eye(3)
    return box
