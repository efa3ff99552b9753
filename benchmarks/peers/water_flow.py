"""Water that flows: all atoms move with one velocity and keep their distances, whatever the model's weights.

A model with random weights repels nothing, and its atoms would soon overlap. Heavy atoms do not feel it. The velocity,
0.026 Å/fs, is about that of hydrogen at 300 K; with a skin of 1 Å neighbours are listed anew once in `STEPS` steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openmm
from openmm import app, unit

TIMESTEP = 0.5
"""fs."""

STEPS = 40
SKIN = 1.0
"""Å."""

VELOCITY = 1.02 * 0.5 * SKIN / (STEPS * TIMESTEP)
"""Å/fs."""

MASS = 1e9
"""Dalton."""


def read(folder: Path) -> Any:
    """Topology and positions of the system."""
    with (folder / "system.pdb").open() as file:
        return app.PDBFile(file)


def simulation(pdb: Any, system: openmm.System, device: str, threads: int) -> app.Simulation:
    """Of a system without a force that removes the motion of its centre of mass."""
    for particle in range(system.getNumParticles()):
        system.setParticleMass(particle, MASS)
    platform = openmm.Platform.getPlatformByName("CUDA" if device == "cuda" else "CPU")
    properties = {} if device == "cuda" else {"Threads": str(threads)}
    integrator = openmm.VerletIntegrator(TIMESTEP * unit.femtosecond)
    made = app.Simulation(pdb.topology, system, integrator, platform, properties)
    made.context.setPositions(pdb.positions)
    along = openmm.Vec3(1, 1, 1) * (VELOCITY / 3**0.5 * 100)  # nm/ps
    made.context.setVelocities([along] * system.getNumParticles())
    return made


def without_forces(pdb: Any, system: openmm.System) -> openmm.System:
    """The same particles and box: what OpenMM itself does in a step."""
    made = openmm.System()
    made.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    for _ in pdb.topology.atoms():
        made.addParticle(MASS)
    return made


def start(made: app.Simulation) -> dict[str, object]:
    """The potential energy at the start, and where it is computed."""
    energy = made.context.getState(energy=True).getPotentialEnergy()
    return {
        "energy_kJ_mol": energy.value_in_unit(unit.kilojoule_per_mole),
        "platform": made.context.getPlatform().getName(),
    }


def ns_per_day(step_ms: float) -> float:
    """Speed of a simulation."""
    return 86.4 * TIMESTEP / step_ms
