"""``nequip relax MODEL STRUCTURE``: move atoms, and the cell if asked, to a minimum of the energy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nequip_core.cli.imports import imports
from nequip_core.cli.options import add_device, add_model, command_parser

if TYPE_CHECKING:
    from nequip_core.engines.dynamics import RelaxStep

INTERRUPTED = 130
NOT_CONVERGED = 3


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("relax", "Relaxation with ASE's optimizers. Exit code 3: not converged within the steps.")
    add_model(result)
    result.add_argument("structure", metavar="STRUCTURE", type=Path, help="the start, in any format that ASE reads")
    result.add_argument("--index", type=int, default=0, help="which frame of STRUCTURE")
    result.add_argument("--fmax", metavar="EV/A", type=float, default=0.01, help="largest force at the end")
    result.add_argument("--cell", action="store_true", help="relax the lattice vectors too, at no pressure")
    result.add_argument("--optimizer", choices=["bfgs", "lbfgs", "fire"], default="bfgs", help="ASE's")
    result.add_argument("--steps", metavar="N", type=int, default=500, help="at most so many")
    result.add_argument("--trajectory", metavar="OUT.extxyz", type=Path, help="write each step; the last is relaxed")
    add_device(result)
    return result


def run(argv: list[str]) -> int:
    """Relax, print a line per step."""
    options = parser().parse_args(argv)

    with imports():
        from nequip_core.cli.loading import load, say, stop_on_interrupt
        from nequip_core.data.read import read_atoms
        from nequip_core.engines.ase import NequIPCalculator
        from nequip_core.engines.dynamics import relax

    atoms = read_atoms(options.structure, options.index)
    atoms.calc = NequIPCalculator(load(options, device=options.device))
    say(f"structure: {options.structure} frame {options.index}, {atoms.get_chemical_formula()}")
    print(f"{'step':>6s} {'energy (eV)':>16s} {'fmax (eV/Å)':>12s}")
    with stop_on_interrupt() as stop:
        result = relax(
            atoms,
            fmax=options.fmax,
            cell=options.cell,
            optimizer=options.optimizer,
            steps=options.steps,
            trajectory=options.trajectory,
            stop=stop,
            report=print_step,
        )
    if options.trajectory:
        say(f"wrote {options.trajectory}")
    if result.interrupted:
        say(f"interrupted after step {result.last.step}")
        return INTERRUPTED
    if not result.converged:
        say(
            f"not converged: the largest force is {result.last.fmax:.4f} eV/Å after {result.last.step} steps, asked "
            f"for {options.fmax:g}; allow more --steps, or go on from the last frame"
        )
        return NOT_CONVERGED
    print(f"converged after {result.last.step} steps: largest force {result.last.fmax:.4f} eV/Å")
    return 0


def print_step(step: RelaxStep) -> None:
    """One line of the table on the screen."""
    print(f"{step.step:6d} {step.energy:16.6f} {step.fmax:12.4f}")
    sys.stdout.flush()
