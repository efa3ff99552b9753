"""Steps of openmm-ml's `nequip` potential with the published package, in its environment; see benchmarks/openmm.py.

`make MODEL FOLDER` writes FOLDER/last.ckpt.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
from nequip.utils.global_state import set_global_state
from openmmml import MLPotential
from systems import water
from their_calls import checkpoint
from timing import answer, median_ms, report
from water_flow import ns_per_day, read, simulation, start


def make(model: str, folder: Path) -> None:
    set_global_state()
    with contextlib.chdir(folder):
        checkpoint(model, ["H", "O"], water(2))


def main(model: str, name: str, threads: int, device: str, mode: str) -> None:
    torch.set_num_threads(threads)
    folder = Path(name)
    pdb = read(folder)
    arguments = {"lengthScale": 0.1, "energyScale": 96.48533212331}
    potential = MLPotential("nequip", modelPath=str(folder.parent / "last.ckpt"), **arguments)
    flow = simulation(pdb, potential.createSystem(pdb.topology, device=device, removeCMMotion=False), device, threads)

    def measure() -> dict[str, float]:
        """Neighbours are listed anew in every step."""
        step_ms = median_ms(lambda: flow.step(1), device)
        nothing = float("nan")
        figures = {"step_ms": step_ms, "ns_per_day": ns_per_day(step_ms)}
        return figures | {"call_ms": nothing, "openmm_ms": nothing, "overhead_percent": nothing}

    report(**start(flow))
    answer(measure)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
