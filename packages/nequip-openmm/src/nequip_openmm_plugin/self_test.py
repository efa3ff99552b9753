"""A program: two particles in TorchForce. Fails, or is ended, where openmm-torch was built for another torch."""

from __future__ import annotations

import warnings

import openmm
import torch
from openmm import unit
from torch import Tensor


class Harmonic(torch.nn.Module):
    """The sum of the squares of all coordinates."""

    def forward(self, positions: Tensor) -> Tensor:
        """Energy, kJ/mol."""
        return (positions**2).sum()


def main() -> None:
    """Compare energy and force with what they must be."""
    from openmmtorch import TorchForce

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        force = TorchForce(torch.jit.script(Harmonic()))
    system = openmm.System()
    for _ in range(2):
        system.addParticle(1.0)
    system.addForce(force)
    reference = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
    context.setPositions([[0, 0, 0], [0.5, 0, 0]])
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    pull = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)[1, 0]
    if abs(energy - 0.25) > 1e-12 or abs(pull + 1.0) > 1e-12:
        raise SystemExit(f"energy {energy}, force {pull}; expected 0.25 and -1")


if __name__ == "__main__":
    main()
