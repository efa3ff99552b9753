"""Steps of nequip-openmm with one of its backends; see benchmarks/openmm.py and sides.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from openmm import unit
from timing import answer, median_ms, report
from water_flow import SKIN, STEPS, ns_per_day, read, simulation, start, without_forces

import nequip_openmm
from nequip_core.export.artifact import load_model
from nequip_core.graph import Graph, from_structure, to
from nequip_core.neighbors import make_vesin
from nequip_core.structure import Structure


def main(model: str, name: str, threads: int, device: str, backend: str) -> None:
    torch.set_num_threads(threads)
    folder = Path(name)
    pdb = read(folder)
    path = folder.parent / "model.nequip.pt2"
    loaded = load_model(path, device=device)
    options = {"device": device, "skin": SKIN, "remove_cm_motion": False}
    system = nequip_openmm.create_system(pdb.topology, path, backend, **options)
    flow = simulation(pdb, system, device, threads)
    alone = simulation(pdb, without_forces(pdb, system), device, threads)

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
        call_ms = median_ms(call, device)
        step_ms = median_ms(lambda: flow.step(STEPS), device) / STEPS
        openmm_ms = median_ms(lambda: alone.step(STEPS), device) / STEPS
        figures = {"step_ms": step_ms, "ns_per_day": ns_per_day(step_ms), "call_ms": call_ms, "openmm_ms": openmm_ms}
        return figures | {"overhead_percent": 100 * (step_ms / call_ms - 1)}

    report(**start(flow))
    answer(measure)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
