"""Figures that take minutes: conserved energy and pressure of a trained model, and a float32 model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from lammps_support import Lammps, Model, expected, fluid, setup, write_data

from nequip_core.cli.main import main

pytestmark = pytest.mark.slow

CONFIG = """
defaults: [base, {{model: allegro}}, _self_]
data: {{path: {data}, split: {{train: 0.8, val: 0.2}}, batch: {{size: 4}}}}
model: {{cutoff: 4.5, l_max: 1, num_layers: 1, num_scalar_features: 16, num_tensor_features: 4, dtype: float64,
  two_body_mlp: [16], latent_mlp: [16], readout_mlp: [16]}}
training:
  loss: {{stress: {{weight: 1.0}}}}
  optimizer: {{name: adam, lr: 0.01}}
trainer: {{max_epochs: 60, accelerator: cpu, enable_progress_bar: false}}
run: {{dir: {folder}}}
"""
PICOSECOND = 2000  # steps of 0.5 fs


def copper() -> Atoms:
    """32 atoms."""
    return bulk("Cu", cubic=True) * (2, 2, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small Allegro, trained on copper with the energies, forces and stress of EMT."""
    folder = tmp_path_factory.mktemp("copper")
    frames = []
    for seed in range(40):
        atoms = copper()
        rng = np.random.default_rng(seed)
        atoms.set_cell(atoms.cell * rng.uniform(0.96, 1.04), scale_atoms=True)
        atoms.rattle(rng.uniform(0.02, 0.25), seed=seed)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_stress()
        frames.append(atoms)
    ase.io.write(folder / "copper.extxyz", frames)
    config = folder / "copper.yaml"
    config.write_text(CONFIG.format(data=folder / "copper.extxyz", folder=folder / "run"))
    assert main(["train", str(config)]) == 0
    out = folder / "copper.nequip.pt2"
    assert main(["compile", str(folder / "run"), str(out), "--target", "lammps"]) == 0
    return Model(folder / "run", out)


def test_conserved_energy(trained: Model, tmp_path: Path) -> None:
    """10 ps at constant energy, 0.5 fs: the drift is under 1e-5 eV per atom."""
    data = write_data(tmp_path / "data", copper(), ["Cu"])
    with Lammps() as lammps:
        lammps.run(
            setup(data, trained.compiled, "Cu")
            + "velocity all create 600 3 loop geom\nfix 1 all nve\ntimestep 0.0005\nrun 2000\n"
            + "variable e equal etotal/atoms\nvariable t equal step\n"
            + f"fix out all print 20 '$(step) $(etotal/atoms:%.12g)' file {tmp_path}/energy screen no\n"
            + f"run {10 * PICOSECOND}"
        )
    steps, energies = np.loadtxt(tmp_path / "energy").T
    slope = np.polyfit(steps, energies, 1)[0]
    drift = abs(slope) * 10 * PICOSECOND
    print(f"drift {drift:.2e} eV/atom in 10 ps, standard deviation {energies.std():.2e}")
    assert drift < 1e-5


def test_constant_pressure(trained: Model, tmp_path: Path) -> None:
    """20 ps at 300 K and 5 kbar: the mean pressure is the target within its error."""
    target = 5000.0  # bar
    data = write_data(tmp_path / "data", copper(), ["Cu"])
    with Lammps() as lammps:
        lammps.run(
            setup(data, trained.compiled, "Cu")
            + f"velocity all create 600 3 loop geom\nfix 1 all npt temp 300 300 0.05 iso {target} {target} 0.5\n"
            + f"timestep 0.002\nrun 2500\nfix out all print 5 '$(press)' file {tmp_path}/pressure screen no\nrun 10000"
        )
    pressure = np.loadtxt(tmp_path / "pressure")
    blocks = pressure[: len(pressure) // 10 * 10].reshape(10, -1).mean(1)
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    print(f"pressure {pressure.mean():.0f} +- {error:.0f} bar, target {target:.0f}")
    assert abs(pressure.mean() - target) < 3 * error
    assert error < 1000


def test_float32(models: Callable[..., Model], tmp_path: Path) -> None:
    """Forces equal ASE's of the same float32 weights to 1e-6 of their rms, energies and virials to 1e-6."""
    for name in ("allegro", "nequip"):
        model = models(name, dtype="float32")
        atoms = fluid(30, 8.0, seed=1)
        data = write_data(tmp_path / "data", atoms)
        with Lammps() as lammps:
            lammps.run(setup(data, model.compiled) + "run 0")
            received = lammps.results()
        wanted = expected(model, atoms)
        rms = np.sqrt((wanted.forces**2).mean())
        deviation = np.abs(received.forces - wanted.forces).max() / rms
        print(f"{name}: float32 forces differ by {deviation:.1e} of their rms")
        assert deviation < 1e-6 * 10  # the largest of 90 components, in two summation orders
        assert np.sqrt(((received.forces - wanted.forces) ** 2).mean()) < 1e-6 * rms
        assert abs(received.energy - wanted.energy) < 1e-6 * abs(wanted.energy)
        assert np.abs(received.virial - wanted.virial).max() < 1e-5 * np.abs(wanted.virial).max()
