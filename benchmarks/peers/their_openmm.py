"""Steps of openmm-ml's `nequip` potential with the published package, in its environment; see benchmarks/openmm.py.

`make MODEL FOLDER` writes FOLDER/last.ckpt.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import openmm
import torch
from nequip.utils.global_state import set_global_state
from openmm import app, unit
from openmmml import MLPotential
from systems import water
from their_calls import checkpoint
from timing import answer, median_ms, report

TIMESTEP = 0.5  # fs


def make(model: str, folder: Path) -> None:
    set_global_state()
    with contextlib.chdir(folder):
        checkpoint(model, ["H", "O"], water(2))


def main(model: str, name: str, threads: int, device: str, mode: str) -> None:
    torch.set_num_threads(threads)
    folder = Path(name)
    with (folder / "system.pdb").open() as file:
        pdb = app.PDBFile(file)
    arguments = {"lengthScale": 0.1, "energyScale": 96.48533212331}
    potential = MLPotential("nequip", modelPath=str(folder / "last.ckpt"), **arguments)
    system = potential.createSystem(pdb.topology, device=device)
    platform = openmm.Platform.getPlatformByName("CUDA" if device == "cuda" else "CPU")
    properties = {} if device == "cuda" else {"Threads": str(threads)}
    integrator = openmm.VerletIntegrator(TIMESTEP * unit.femtosecond)
    simulation = app.Simulation(pdb.topology, system, integrator, platform, properties)
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)

    def measure() -> dict[str, float]:
        steps = median_ms(lambda: simulation.step(1), device)
        nothing = float("nan")
        figures = {"step_ms": steps, "ns_per_day": 86.4 * TIMESTEP / steps}
        return figures | {"call_ms": nothing, "overhead_percent": nothing}

    energy = simulation.context.getState(energy=True).getPotentialEnergy()
    report(energy_kJ_mol=energy.value_in_unit(unit.kilojoule_per_mole), platform=platform.getName())
    answer(measure)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
