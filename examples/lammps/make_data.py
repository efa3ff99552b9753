"""Water on a grid: ``python make_data.py 4`` writes water.data with 4 x 4 x 4 molecules at 1 g/cm3."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import write

SPACING = 3.104  # Å between molecules: 1 g/cm3


def water(side: int, seed: int = 0) -> Atoms:
    """Molecules of random orientation in a periodic cube."""
    rng = np.random.default_rng(seed)
    box = Atoms(cell=[side * SPACING] * 3, pbc=True)
    for place in np.ndindex(side, side, side):
        one = molecule("H2O")
        one.positions -= one.positions[0]
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += (np.array(place) + 0.5) * SPACING
        box += one
    return box


if __name__ == "__main__":
    found = water(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
    write("water.data", found, format="lammps-data", specorder=["O", "H"], masses=True, atom_style="atomic")
    print(f"{Path('water.data').resolve()}: {len(found)} atoms")
