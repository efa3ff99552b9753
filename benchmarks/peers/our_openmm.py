"""Steps of nequip-openmm with one of its backends; see benchmarks/openmm.py and sides.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app, unit
from timing import answer, median_ms, report

import nequip_openmm
from nequip_core.export.artifact import load_model
from nequip_core.graph import Graph, from_structure, to
from nequip_core.neighbors import make_vesin
from nequip_core.structure import Structure

TIMESTEP = 0.5  # fs


def main(model: str, name: str, threads: int, device: str, backend: str) -> None:
    torch.set_num_threads(threads)
    folder = Path(name)
    with (folder / "system.pdb").open() as file:
        pdb = app.PDBFile(file)
    path = folder / "model.nequip.pt2"
    loaded = load_model(path, device=device)
    system = nequip_openmm.create_system(pdb.topology, path, backend, device=device)
    platform = openmm.Platform.getPlatformByName("CUDA" if device == "cuda" else "CPU")
    properties = {} if device == "cuda" else {"Threads": str(threads)}
    integrator = openmm.VerletIntegrator(TIMESTEP * unit.femtosecond)
    simulation = app.Simulation(pdb.topology, system, integrator, platform, properties)
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)

    box = np.array(pdb.topology.getPeriodicBoxVectors().value_in_unit(unit.angstrom))
    structure = Structure(
        positions=np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.angstrom)),
        numbers=np.array([atom.element.atomic_number for atom in pdb.topology.atoms()]),
        cell=box,
        pbc=np.full(3, True),
    )
    cutoffs = np.array(loaded.info.pair_cutoffs)
    made = from_structure(structure, loaded.type_map, cutoffs, make_vesin(loaded.info.cutoff))
    graph: Graph = to(made, device)

    def call() -> None:
        loaded.potential(graph)

    def measure() -> dict[str, float]:
        steps = median_ms(lambda: simulation.step(1), device)
        figures = {"step_ms": steps, "call_ms": median_ms(call, device)}
        figures["ns_per_day"] = 86.4 * TIMESTEP / steps
        return figures | {"overhead_percent": 100 * (steps / figures["call_ms"] - 1)}

    energy = simulation.context.getState(energy=True).getPotentialEnergy()
    report(energy_kJ_mol=energy.value_in_unit(unit.kilojoule_per_mole), platform=platform.getName())
    answer(measure)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
