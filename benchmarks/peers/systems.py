"""The structures and the settings that both sides use; needs ASE only."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

SETTINGS = {"num_layers": 3, "l_max": 2, "parity": True, "num_features": 32, "cutoff": 5.0}


def silicon() -> list[Atoms]:
    """64 atoms, 28 neighbours each: the structure of examples/si.yaml."""
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=1)
    return [atoms]


def molecules() -> list[Atoms]:
    """A batch of five molecules without a cell."""
    frames = [molecule("CH3CH2OH") for _ in range(5)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    return frames


SYSTEMS = {"silicon_64": silicon, "ethanol_5x9": molecules}
TYPES = ["H", "C", "O", "Si"]


def labels(frames: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces to train on; any numbers do."""
    rng = np.random.default_rng(0)
    return rng.normal(size=len(frames)), rng.normal(size=(sum(map(len, frames)), 3))
