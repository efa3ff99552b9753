"""Longer dynamics; nox -s slow_tests."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
from openmm import unit
from openmm_support import topology_of, waters

import nequip_openmm


@pytest.mark.slow
@pytest.mark.parametrize("periodic", [True, False])
def test_energy_drifts_by_less_than_1e_5_ev_per_atom_and_ps(periodic, model):
    """20 ps. A model with random weights repels nothing, so a smooth repulsion keeps the atoms apart."""
    atoms = waters()
    atoms.pbc = periodic
    system = nequip_openmm.create_system(topology_of(atoms), model, remove_cm_motion=False)
    repulsion = openmm.CustomNonbondedForce("2e5*max(0, 1-r/0.12)^4")
    for _ in atoms:
        repulsion.addParticle([])
    kind = openmm.CustomNonbondedForce
    repulsion.setNonbondedMethod(kind.CutoffPeriodic if periodic else kind.CutoffNonPeriodic)
    repulsion.setCutoffDistance(0.2)
    system.addForce(repulsion)
    integrator = openmm.VerletIntegrator(0.25 * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10)
    openmm.LocalEnergyMinimizer.minimize(context, 1.0, 200)
    context.setVelocitiesToTemperature(50, 1)
    times, energies = [], []
    for _ in range(200):
        integrator.step(400)
        state = context.getState(energy=True)
        total = state.getPotentialEnergy() + state.getKineticEnergy()
        times.append(state.getTime().value_in_unit(unit.picosecond))
        energies.append(total.value_in_unit(unit.kilojoule_per_mole) / 96.48533212331 / len(atoms))
    assert times[-1] == pytest.approx(20)
    drift = np.polyfit(times, np.array(energies) - energies[0], 1)[0]
    print(f"drift {drift:.2e} eV/atom/ps, periodic {periodic}")  # pytest -rP shows it
    assert abs(drift) < 1e-5
