"""Ethanol by a model, water by TIP3P: dynamics, a trajectory and a plot.

    python examples/openmm/mixed.py MODEL SYSTEM.pdb OUT [--steps N]

writes OUT.dcd, OUT.csv and OUT.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import openmm
from openmm import app, unit
from openmmml import MLPotential

TORSION = ("C1", "C2", "O", "HO")


def build(model: Path, pdb: app.PDBFile) -> openmm.System:
    """Every atom of residue ETH by the model, all else and the interaction of the two by the force field."""
    field = app.ForceField(str(Path(__file__).with_name("ethanol.xml")), "tip3p.xml")
    mm = field.createSystem(pdb.topology, nonbondedMethod=app.PME, nonbondedCutoff=1.0 * unit.nanometer)
    ligand = [atom.index for atom in pdb.topology.atoms() if atom.residue.name == "ETH"]
    return MLPotential("nequip-compiled", modelPath=model).createMixedSystem(pdb.topology, mm, ligand)


class Ethanol:
    """A reporter: the torsion and the distance of the bond O-H, at every frame."""

    def __init__(self, topology: app.Topology, interval: int) -> None:
        names = {atom.name: atom.index for atom in topology.atoms() if atom.residue.name == "ETH"}
        self.atoms = [names[name] for name in TORSION]
        self.interval = interval
        self.rows: list[tuple[float, float, float]] = []

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, object]:  # noqa: N802
        steps = self.interval - simulation.currentStep % self.interval
        return {"steps": steps, "periodic": False, "include": ["positions"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        x = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)[self.atoms]
        first, axis, last = x[0] - x[1], x[2] - x[1], x[3] - x[2]
        a, b = np.cross(first, axis), np.cross(last, axis)
        angle = np.degrees(np.arctan2(np.dot(np.cross(a, b), axis) / np.linalg.norm(axis), np.dot(a, b)))
        time = state.getTime().value_in_unit(unit.picosecond)
        self.rows.append((time, float(angle), float(np.linalg.norm(last))))


def plot(rows: list[tuple[float, float, float]], out: Path) -> None:
    time, angle, bond = np.array(rows).T
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(time, angle, ".", markersize=3)
    left.set(xlabel="time (ps)", ylabel="torsion C-C-O-H (degrees)", ylim=(-180, 180), yticks=range(-180, 181, 60))
    right.hist(bond, bins=40, density=True)
    right.set(xlabel="bond O-H (Å)", ylabel="density (1/Å)")
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("system", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--platform", default="CPU")
    options = parser.parse_args()

    pdb = app.PDBFile(str(options.system))
    system = build(options.model, pdb)
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName(options.platform)
    simulation = app.Simulation(pdb.topology, system, integrator, platform)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy(maxIterations=100)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)

    ethanol = Ethanol(pdb.topology, 20)
    simulation.reporters += [
        ethanol,
        app.DCDReporter(f"{options.out}.dcd", 100),
        app.StateDataReporter(f"{options.out}.csv", 100, step=True, potentialEnergy=True, temperature=True, speed=True),
    ]
    simulation.step(options.steps)
    plot(ethanol.rows, Path(f"{options.out}.png"))
    print(f"wrote {options.out}.dcd, {options.out}.csv, {options.out}.png")


if __name__ == "__main__":
    main()
