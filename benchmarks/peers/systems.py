"""The structures and the settings that both sides use; needs ASE and its SciPy only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

NEQUIP = {"num_layers": 3, "l_max": 2, "parity": True, "num_features": 32, "cutoff": 5.0}
ALLEGRO = {
    "l_max": 2,
    "parity": True,
    "num_scalar_features": 128,
    "num_tensor_features": 64,
    "tp_path_channel_coupling": False,
    "cutoff": 6.0,
}
MODELS = {
    "nequip": NEQUIP,
    "allegro_2": ALLEGRO | {"num_layers": 2},
    "allegro_3": ALLEGRO | {"num_layers": 3},
    "allegro_64": ALLEGRO | {"num_layers": 2, "num_scalar_features": 64, "cutoff": 5.0},
    "nequip_64": NEQUIP | {"num_layers": 4, "num_features": 64},
    "nequip_md": NEQUIP | {"num_features": 64},
    "nequip_large": {
        "num_layers": 6,
        "l_max": 3,
        "parity": False,
        "num_features": [128, 64, 32, 32],
        "cutoff": 6.0,
        "type_embedding_dim": 32,
    },
    "allegro_tiny": ALLEGRO | {"num_layers": 1, "l_max": 1, "num_scalar_features": 8, "num_tensor_features": 4},
    "nequip_tiny": NEQUIP | {"num_layers": 1, "l_max": 1, "num_features": 4},
}


def silicon(side: int = 2) -> list[Atoms]:
    """8 side^3 atoms, 28 neighbours each: the structure of examples/si.yaml."""
    atoms = bulk("Si", cubic=True) * (side, side, side)
    atoms.rattle(0.1, seed=1)
    return [atoms]


def molecules() -> list[Atoms]:
    """A batch of five molecules without a cell."""
    frames = [molecule("CH3CH2OH") for _ in range(5)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    return frames


def water(side: int = 4) -> list[Atoms]:
    """side^3 molecules at the density of water, turned at random: 192 atoms, 87 neighbours each within 6 Å."""
    rng = np.random.default_rng(0)
    spacing = 3.105
    one = molecule("H2O")
    grid = np.stack(np.meshgrid(*3 * [np.arange(side)], indexing="ij"), -1).reshape(-1, 3)
    centers = (grid + 0.5) * spacing + rng.normal(scale=0.1, size=grid.shape)
    turns = Rotation.random(len(grid), rng).as_matrix()
    positions = (centers[:, None] + np.einsum("mij,aj->mai", turns, one.positions)).reshape(-1, 3)
    whole = Atoms(np.tile(one.numbers, len(grid)), positions, cell=[spacing * side] * 3, pbc=True)
    whole.wrap()
    return [whole]


def globules(count: int = 32, atoms: int = 30) -> list[Atoms]:
    """Molecules of random shape: atoms in a ball at the density of organic ones, none nearer than 1 Å."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        placed = np.zeros((0, 3))
        while len(placed) < atoms:
            trial = rng.uniform(-4, 4, 3)
            if np.linalg.norm(trial) < 4 and (np.linalg.norm(placed - trial, axis=1) > 1.0).all():
                placed = np.vstack([placed, trial])
        frames.append(Atoms(rng.choice(["H", "C", "O"], atoms), placed))
    return frames


SYSTEMS = {
    "silicon_64": silicon,
    "silicon_8000": partial(silicon, 10),
    "ethanol_5x9": molecules,
    **{f"water_{3 * side**3}": partial(water, side) for side in (3, 4, 8, 12, 16, 19, 70)},
    "molecules_32x30": globules,
    "molecules_4x8": partial(globules, 4, 8),
}
TYPES = {
    "silicon_64": ["Si"],
    "silicon_8000": ["Si"],
    "ethanol_5x9": ["H", "C", "O"],
    **{name: ["H", "O"] for name in SYSTEMS if name.startswith("water")},
    "molecules_32x30": ["H", "C", "O"],
    "molecules_4x8": ["H", "C", "O"],
}


def compiled_file(folder: str | Path, side: str, model: str, system: str, mode: str, device: str) -> Path:
    """Where the file of a model for the types of a system is."""
    return Path(folder).resolve() / f"{side}_{model}_{''.join(TYPES[system])}_{mode}_{device}.nequip.pt2"


def labels(frames: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces to train on; any numbers do."""
    rng = np.random.default_rng(0)
    return rng.normal(size=len(frames)), rng.normal(size=(sum(map(len, frames)), 3))
