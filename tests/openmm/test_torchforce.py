"""With the real TorchForce only (nox -s torchforce_tests): what the stand-in can not show."""

from __future__ import annotations

import time

import numpy as np
import openmm
import pytest
from openmm_support import PLATFORMS, context_of, energy_forces, system_of, topology_of, waters

import nequip_openmm
from nequip_openmm.check import plugin_verdict


def test_the_plugin_works_here():
    usable, sentence = plugin_verdict()
    assert usable, sentence


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("energy_only", [False, True])
def test_the_lines_that_a_user_types(energy_only, platform, model, calculator, tmp_path):
    from openmmtorch import TorchForce

    atoms = waters()
    path = nequip_openmm.export_torchforce(model, topology_of(atoms), tmp_path / "model.pt", energy_only=energy_only)
    force = TorchForce(str(path))
    if not energy_only:
        force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(True)
    system = system_of(atoms)
    system.addForce(force)
    energy, forces = energy_forces(context_of(system, atoms, platform))
    atoms.calc = calculator()
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-9)


def test_both_backends_take_the_same_steps(model, tmp_path):
    atoms = waters()
    positions = []
    for backend in ("python", "torchforce"):
        system = nequip_openmm.create_system(topology_of(atoms), model, backend, remove_cm_motion=False)
        context = context_of(system, atoms)
        context.getIntegrator().step(50)
        positions.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    np.testing.assert_allclose(*positions, rtol=0, atol=1e-12)


def test_the_derivative_by_the_parameter_is_the_energy(model, tmp_path):
    atoms = waters()
    path = nequip_openmm.export_torchforce(model, topology_of(atoms), tmp_path / "model.pt", lambda_name="scale")
    context = context_of(system_of(atoms, nequip_openmm.torch_force(path)), atoms)
    plain = context.getState(energy=True).getPotentialEnergy()._value
    context.setParameter("scale", 0.3)
    state = context.getState(energy=True, forces=True, parameterDerivatives=True)
    assert state.getPotentialEnergy()._value == pytest.approx(0.3 * plain)
    assert state.getEnergyParameterDerivatives()["scale"] == pytest.approx(plain)


def test_a_step_costs_little_beside_the_model(model, tmp_path):
    """52 us a step for five particles when this was designed."""
    atoms = waters()
    path = nequip_openmm.export_torchforce(model, topology_of(atoms), tmp_path / "model.pt")
    context = context_of(system_of(atoms, nequip_openmm.torch_force(path)), atoms)
    context.getIntegrator().step(10)
    started = time.perf_counter()
    context.getIntegrator().step(100)
    assert (time.perf_counter() - started) / 100 < 0.1


def test_another_plugin_force_beside_ours(model, tmp_path):
    atoms = waters()
    path = nequip_openmm.export_torchforce(model, topology_of(atoms), tmp_path / "model.pt")
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 1, 0.2, 1000.0)
    both = energy_forces(context_of(system_of(atoms, nequip_openmm.torch_force(path), bond), atoms))
    alone = energy_forces(context_of(system_of(atoms, nequip_openmm.torch_force(path)), atoms))
    np.testing.assert_allclose(both[1][2:], alone[1][2:], atol=1e-12)
    assert abs(both[0] - alone[0]) > 1e-3
