"""Milliseconds of single steps, in a cell that stays and in cells that change.

    python benchmarks/steps.py FILE.nequip.pt2 [--device cuda] [--engines ase openmm] [--sides 6 12] [--steps 400]
        [--backend torchforce] [--out FILE.csv]

Boxes of N x N x N molecules of water: 6 is 648 atoms, 12 is 5,184. FILE is compiled with the target ase. All atoms have
one velocity, about that of hydrogen at 300 K, so that neighbours are listed anew once in about 40 steps, whatever the
model says; the mean has the steps that do so. `lists`: how often that was. `cell`: "stays"; "tried": another one each
25 steps, and in half of the cases back with the next step, as a Monte Carlo barostat does it; "changes" with each step.
`recorded`: whether steps are, which is so for compiled files on CUDA unless NEQUIP_RECORD_STEPS is 0.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.remove(str(Path(__file__).parent))  # where openmm.py would be taken for the package openmm
from sides import hardware, today, write
from systems import water

from nequip_core.engines.ase import NequIPCalculator
from nequip_core.moving import MovingPotential
from nequip_core.skin import SkinGraph

WARM = 60
"""Steps before those that count: what is recorded is recorded there."""

STEP = np.full(3, 0.013 / 3**0.5)
"""Å."""

CELLS: dict[str, tuple[int, float]] = {"stays": (0, 0.0), "tried": (25, 0.003), "changes": (1, 1e-5)}
"""Each how many steps it changes (0: never), and by what share of its lengths, one standard deviation."""

Step = Callable[[float, int], None]
"""Of a cell so many times as long as the first, after so many steps."""


def strains(cell: str, steps: int) -> Iterator[float]:
    """For each step, how many times as long as the first cell it is."""
    rng = np.random.default_rng(0)
    each, share = CELLS[cell]
    before = now = 1.0
    for n in range(steps):
        if each and n % each == 0:
            before, now = now, 1 + share * rng.normal()
        elif each and n % each == 1 and rng.random() < 0.5:
            now = before
        yield now


def in_ase(file: Path, device: str, atoms: Atoms) -> tuple[Step, MovingPotential]:
    calculator = NequIPCalculator.from_file(file, device=device)
    cell, positions = atoms.cell[:].copy(), atoms.positions.copy()
    now = atoms.copy()

    def step(strain: float, n: int) -> None:
        now.set_cell(strain * cell)
        now.positions = strain * (positions + n * STEP)
        calculator.calculate(now)

    return step, calculator._moving


def in_openmm(file: Path, device: str, atoms: Atoms, backend: str) -> tuple[Step, MovingPotential]:
    from openmm import Vec3, app, unit
    from water_flow import simulation

    import nequip_openmm
    from nequip_openmm import evaluate

    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    box = 0.1 * atoms.cell[:]
    topology.setPeriodicBoxVectors([Vec3(*row) for row in box] * unit.nanometer)
    pdb = argparse.Namespace(topology=topology, positions=0.1 * atoms.positions * unit.nanometer)
    evaluate._EVALUATORS.clear()
    system = nequip_openmm.create_system(topology, file, backend, device=device, remove_cm_motion=False)
    flow = simulation(pdb, system, device, torch.get_num_threads())
    flow.step(1)
    (evaluator,) = evaluate._EVALUATORS.values()
    before = 1.0

    def step(strain: float, n: int) -> None:
        nonlocal before
        if strain != before:
            before = strain
            flow.context.setPeriodicBoxVectors(*(Vec3(*row) for row in strain * box))
        flow.step(1)

    return step, evaluator._moving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--engines", nargs="+", default=["ase"], choices=("ase", "openmm"))
    parser.add_argument("--backend", default="torchforce", help="of OpenMM")
    parser.add_argument("--sides", nargs="+", type=int, default=[6])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    rows: list[dict[str, object]] = []
    for engine in options.engines:
        for side in options.sides:
            (atoms,) = water(side)
            for cell in CELLS:
                if engine == "ase":
                    step, moving = in_ase(options.file, options.device, atoms)
                else:
                    step, moving = in_openmm(options.file, options.device, atoms, options.backend)
                times = []
                for n, strain in enumerate(strains(cell, WARM + options.steps)):
                    if n == WARM:
                        before = listed(moving)
                    wait()
                    start = time.perf_counter()
                    step(strain, n)
                    wait()
                    times.append(1e3 * (time.perf_counter() - start))
                counted = np.array(times[WARM:])
                row = {
                    "date": today(),
                    "hardware": hardware(options.device, torch.get_num_threads()),
                    "file": options.file.name,
                    "engine": engine,
                    "atoms": len(atoms),
                    "cell": cell,
                    "recorded": moving._steps is not None,
                    "median_ms": round(float(np.median(counted)), 3),
                    "mean_ms": round(float(counted.mean()), 3),
                    "largest_ms": round(float(counted.max()), 2),
                    "lists": listed(moving) - before,
                    "steps": options.steps,
                }
                print(row, flush=True)
                rows.append(row)
                write(options.out, rows)


def listed(moving: MovingPotential) -> int:
    """How often neighbours were listed."""
    graph = moving.graph
    return graph.builds if isinstance(graph, SkinGraph) else graph.neighbors.builds


if __name__ == "__main__":
    main()
