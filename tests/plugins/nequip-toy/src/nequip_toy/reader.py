"""Files ``.toy``: molecules in eV and Å, separated by empty lines.

The first line of a molecule is its energy, every other one an atom: element, position, force::

    -13.6
    H 0.0 0.0 0.0  0.1 0.0 0.0
    H 0.0 0.0 0.7 -0.1 0.0 0.0
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ase.utils import string2index

from nequip_core.errors import InputError
from nequip_core.structure import Structure, source_of


def open_toy(path: Path, index: str, keys: Any, units: Any) -> Iterator[Structure]:
    """The molecules that ``index`` chooses. ``keys`` and ``units`` are not used: the format fixes both.

    Raises:
        InputError: a molecule can not be read; names the file and the molecule.
    """
    molecules = [block.splitlines() for block in Path(path).read_text().split("\n\n") if block.strip()]
    wanted = string2index(index)
    if isinstance(wanted, int):
        wanted = slice(wanted, None if wanted == -1 else wanted + 1)
    if isinstance(wanted, str):
        raise InputError(f"{path}: index {index!r} is no slice. Expected start:stop:step or a number.")
    for number in range(len(molecules))[wanted]:
        source = source_of(path, number)
        try:
            energy, *atoms = molecules[number]
            symbols = [line.split()[0] for line in atoms]
            values = np.array([line.split()[1:] for line in atoms], dtype=float).reshape(len(atoms), 6)
            yield Structure(
                positions=values[:, :3],
                numbers=np.array([atomic_numbers[symbol] for symbol in symbols]),
                cell=np.zeros((3, 3)),
                pbc=np.zeros(3, dtype=bool),
                energy=float(energy),
                forces=values[:, 3:],
                source=source,
            )
        except (ValueError, KeyError, IndexError) as error:
            raise InputError(f"{source}: expected an energy, then 'element x y z fx fy fz' lines: {error}.") from error
