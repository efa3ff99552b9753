"""``nequip md MODEL STRUCTURE``: molecular dynamics in ASE."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from nequip_core.cli.imports import imports
from nequip_core.cli.options import add_device, add_model, command_parser

INTERRUPTED = 130
THERMOSTATS = {"nve": None, "nvt": "langevin", "npt": "nose-hoover"}
"""The thermostat of each ensemble unless one is named."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("md", "Molecular dynamics with ASE's integrators.")
    add_model(result)
    result.add_argument("structure", metavar="STRUCTURE", type=Path, help="the start, in any format that ASE reads")
    result.add_argument("--index", type=int, default=0, help="which frame of STRUCTURE")
    result.add_argument("--ensemble", choices=list(THERMOSTATS), default="nve", help="npt: isotropic")
    result.add_argument(
        "--thermostat",
        choices=["langevin", "nose-hoover"],
        default=argparse.SUPPRESS,
        help="of nvt (default: langevin) and npt (default: nose-hoover)",
    )
    result.add_argument("--temperature", metavar="K", type=float, default=300.0, help="of velocities and thermostat")
    result.add_argument(
        "--friction",
        metavar="1/FS",
        type=float,
        default=0.01,
        help="of Langevin dynamics; inverse time constant of Nosé-Hoover chains",
    )
    result.add_argument("--pressure", metavar="GPA", type=float, default=0.0, help="of npt")
    result.add_argument("--timestep", metavar="FS", type=float, default=1.0, help="fs")
    result.add_argument("--steps", metavar="N", type=int, default=1000, help="number of steps")
    result.add_argument("--seed", type=int, default=0, help="of velocities and random forces")
    result.add_argument("--interval", metavar="N", type=int, default=10, help="steps between rows and frames")
    result.add_argument("--log", metavar="LOG.csv", type=Path, help="write energies, temperature, pressure")
    result.add_argument("--trajectory", metavar="OUT.extxyz", type=Path, help="write frames")
    add_device(result)
    return result


def run(argv: list[str]) -> int:
    """Integrate, print a line per interval, end with drift and speed."""
    options = parser().parse_args(argv)

    with imports():
        from nequip_core.cli.loading import load, say, stop_on_interrupt
        from nequip_core.data.read import read_atoms
        from nequip_core.engines.ase import NequIPCalculator
        from nequip_core.engines.dynamics import DynamicsSettings, run_dynamics

    settings = DynamicsSettings(
        ensemble=options.ensemble,
        thermostat=vars(options).get("thermostat", THERMOSTATS[options.ensemble]),
        temperature=options.temperature,
        friction=options.friction,
        pressure=options.pressure,
        timestep=options.timestep,
        steps=options.steps,
        seed=options.seed,
        interval=options.interval,
    )
    atoms = read_atoms(options.structure, options.index)
    atoms.calc = NequIPCalculator(load(options, device=options.device))
    say(f"structure: {options.structure} frame {options.index}, {atoms.get_chemical_formula()}")
    print(f"{'step':>9s} {'time (fs)':>11s} {'T (K)':>9s} {'potential (eV)':>16s} {'total (eV)':>16s} {'p (GPa)':>9s}")
    with stop_on_interrupt() as stop:
        result = run_dynamics(
            atoms, settings, log=options.log, trajectory=options.trajectory, stop=stop, report=print_row
        )
    drift = result.drift(len(atoms))
    if settings.ensemble == "nve" and math.isfinite(drift):
        print(f"energy drift: {drift:.4f} meV/atom/ps (slope of a line fitted to the total energy)")
    print(f"mean temperature: {result.mean_temperature():.1f} K")
    if result.steps:
        print(f"{result.steps} steps in {result.seconds:.1f} s: {1e3 * result.seconds / result.steps:.2f} ms per step")
    for path in filter(None, (options.log, options.trajectory)):
        say(f"wrote {path}")
    if result.interrupted:
        say(f"interrupted after step {result.steps} of {settings.steps}")
        return INTERRUPTED
    return 0


def print_row(row: dict[str, float | None]) -> None:
    """One line of the table on the screen."""
    pressure = row["pressure_GPa"]
    print(
        f"{row['step']:9d} {row['time_fs']:11.1f} {row['temperature_K']:9.1f} {row['potential_energy_eV']:16.6f} "
        f"{row['total_energy_eV']:16.6f} {'-' if pressure is None else format(pressure, '.3f'):>9s}"
    )
    sys.stdout.flush()
