"""Make the demo's data: seven small molecules at 500 K, energies and forces by GFN2-xTB.

    OMP_NUM_THREADS=1 python examples/demo/make_data.py [FOLDER]

writes molecules.xyz.xz (training and validation) and molecules_test.xyz.xz, whose frames come from other trajectories.
Needs ase and tblite; the README beside this file says which versions made the files that the repository holds.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from tblite.ase import TBLite

MOLECULES = {  # config_type: name in ASE's g2 set
    "water": "H2O",
    "methane": "CH4",
    "methylamine": "H3CNH2",
    "ethanol": "CH3CH2OH",
    "dimethyl_ether": "CH3OCH3",
    "acetic_acid": "CH3COOH",
    "acetamide": "CH3CONH2",
}
FILES = {"molecules.xyz.xz": (60, 1), "molecules_test.xyz.xz": (20, 2)}  # frames of each molecule, seed
TEMPERATURE = 500.0  # K
TIMESTEP = 0.5  # fs
EQUILIBRATION = 1000  # steps that are thrown away
SPACING = 80  # steps between two frames that are kept: 40 fs
DECIMALS = 6  # of positions in Å and forces in eV/Å


def frames(name: str, count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Frames of one Langevin trajectory, labelled at the rounded positions that the file holds."""
    atoms = molecule(MOLECULES[name])
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    spread = np.sqrt(atoms.get_masses() * units.kB * TEMPERATURE)[:, None]
    atoms.set_momenta(spread * rng.normal(size=(len(atoms), 3)))  # Maxwell-Boltzmann
    dynamics = Langevin(
        atoms, TIMESTEP * units.fs, temperature_K=TEMPERATURE, friction=0.02 / units.fs, rng=rng, fixcm=False
    )
    dynamics.run(EQUILIBRATION)
    for _ in range(count):
        dynamics.run(SPACING)
        frame = Atoms(atoms.symbols, np.round(atoms.positions - atoms.get_center_of_mass(), DECIMALS))
        frame.calc = atoms.calc
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        frame.calc = SinglePointCalculator(frame, energy=round(energy, DECIMALS), forces=np.round(forces, DECIMALS))
        frame.info["config_type"] = name
        yield frame


def main(folder: Path) -> None:
    """Write both files into ``folder``."""
    for file, (count, seed) in FILES.items():
        rng = np.random.default_rng(seed)
        collected = [frame for name in MOLECULES for frame in frames(name, count, rng)]
        with lzma.open(folder / file, "wt", preset=9) as out:
            write(out, collected, format="extxyz")
        size = (folder / file).stat().st_size
        print(f"{folder / file}: {len(collected)} frames, {sum(map(len, collected))} atoms, {size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
