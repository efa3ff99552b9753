"""A list that serves several steps of a simulation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nequip_core.errors import InputError
from nequip_core.neighbors.libraries import NeighborList, Pairs
from nequip_core.structure import Floats


class SkinNeighborList:
    """A list that is made a little beyond the cut-off and used again until an atom has moved half of that (Verlet).

    The pairs it returns reach to cut-off + skin; `nequip_core.graph.build_graph` keeps those within the cut-off. It
    belongs to one sequence of configurations: any change of cell, periodicity or number of atoms makes a new list.
    """

    def __init__(self, make: Callable[[float, float], NeighborList], cutoff: float, skin: float) -> None:
        if skin < 0:
            raise InputError(f"skin must be 0 Å or more, received {skin}.")
        self.skin = skin
        self.list = make(cutoff, skin)
        self.builds = 0
        self._made: tuple[Floats, Floats, NDArray[np.bool_]] | None = None
        self._pairs: Pairs

    def __call__(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> Pairs:
        """The pairs within cut-off + skin of the configuration of the last build."""
        if not self._holds(positions, cell, pbc):
            self._pairs = self.list(positions, cell, pbc)
            self._made = (positions.copy(), cell.copy(), pbc.copy())
            self.builds += 1
        return self._pairs

    def _holds(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> bool:
        if self._made is None:
            return False
        then, cell_then, pbc_then = self._made
        if then.shape != positions.shape or not np.array_equal(cell, cell_then) or not np.array_equal(pbc, pbc_then):
            return False
        moved = positions - then
        return len(moved) == 0 or bool(np.einsum("ni,ni->n", moved, moved).max() < (0.5 * self.skin) ** 2)
