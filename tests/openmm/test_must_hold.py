"""What users of OpenMM do with a force, beyond asking for its value."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from ase import Atoms
from openmm import app, unit
from openmm_support import PLATFORMS, REAL, context_of, energy_forces, hosted, ice, system_of, topology_of, waters

import nequip_openmm


@pytest.fixture(params=["python", "torch"])
def make_force(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Any:
    """``(atoms, **options)``: a force of the model for all these atoms, of either kind."""

    def make(whole: Atoms, **options: Any) -> openmm.Force:
        if request.param == "python":
            return nequip_openmm.python_force(model, topology_of(whole), **options)
        path = nequip_openmm.export_torchforce(model, topology_of(whole), tmp_path / "model.pt", **options)
        spec = nequip_openmm.torchforce.read_spec(path)
        return hosted(path, periodic=spec.box, parameters=() if spec.parameter is None else (spec.parameter,))

    return make


def rattled(atoms: Atoms, seed: int, by: float = 0.1) -> Atoms:
    moved = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(scale=by, size=moved.positions.shape)
    return moved


def test_two_contexts_of_one_force_do_not_disturb_each_other(make_force, calculator):
    first, second = rattled(waters(), 1), rattled(waters(), 2)
    system = system_of(first, make_force(first))
    contexts = [context_of(system, atoms) for atoms in (first, second)]
    for _ in range(3):
        for context, atoms in zip(contexts, (first, second), strict=True):
            atoms.calc = calculator()
            energy, forces = energy_forces(context)
            assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
            np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-9)


def test_two_forces_that_differ_in_their_atoms_only(model, calculator):
    atoms = waters()
    topology = topology_of(atoms)
    halves = [range(12), range(12, 24)]
    forces = [nequip_openmm.python_force(model, topology, atoms=half) for half in halves]
    energy, _ = energy_forces(context_of(system_of(atoms, *forces), atoms))
    expected = 0.0
    for half in halves:
        part = atoms[list(half)]
        part.calc = calculator()
        expected += part.get_potential_energy()
    assert energy == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_minimizer_with_a_reporter(make_force, platform):
    atoms = ice()
    context = context_of(system_of(atoms, make_force(atoms)), atoms, platform)
    before, _ = energy_forces(context)
    seen = []

    class Reporter(openmm.MinimizationReporter):
        def report(self, iteration, x, grad, args):
            seen.append(args["system energy"])
            return iteration >= 4

    openmm.LocalEnergyMinimizer.minimize(context, 1.0, 0, Reporter())
    assert len(seen) >= 4
    assert energy_forces(context)[0] < before


@pytest.mark.parametrize("platform", PLATFORMS)
def test_energy_is_conserved(make_force, platform):
    atoms = waters()
    context = context_of(system_of(atoms, make_force(atoms)), atoms, platform, timestep=1e-4)
    context.setVelocitiesToTemperature(100, 1)
    totals = []
    for _ in range(10):
        context.getIntegrator().step(5)
        state = context.getState(energy=True)
        total = state.getPotentialEnergy() + state.getKineticEnergy()
        totals.append(total.value_in_unit(unit.kilojoule_per_mole))
        kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert kinetic > 1
    assert np.ptp(totals) < 1e-3 * kinetic


def test_in_a_collective_variable(make_force, request):
    if REAL and "torch" in request.node.callspec.id:
        pytest.skip("openmm-torch 1.10 was built for an older OpenMM: in a CustomCVForce it ends the process")
    atoms = ice()
    variable = openmm.CustomCVForce("2*model")
    variable.addCollectiveVariable("model", make_force(atoms))
    plain = energy_forces(context_of(system_of(atoms, make_force(atoms)), atoms))
    doubled = energy_forces(context_of(system_of(atoms, variable), atoms))
    assert doubled[0] == pytest.approx(2 * plain[0], rel=1e-12)
    np.testing.assert_allclose(doubled[1], 2 * plain[1], rtol=1e-12, atol=1e-12)


def test_ring_polymers(make_force):
    atoms = ice()
    integrator = openmm.RPMDIntegrator(3, 300, 1.0, 1e-4)
    context = openmm.Context(
        system_of(atoms, make_force(atoms)), integrator, openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(atoms.positions / 10)
    for bead in range(3):
        integrator.setPositions(bead, rattled(atoms, bead, 0.02).positions / 10)
    integrator.step(3)
    assert np.isfinite(integrator.getTotalEnergy().value_in_unit(unit.kilojoule_per_mole))


def test_a_global_parameter_scales_the_energy(make_force):
    atoms = ice()
    plain = energy_forces(context_of(system_of(atoms, make_force(atoms)), atoms))
    context = context_of(system_of(atoms, make_force(atoms, lambda_name="lambda_ml")), atoms)
    for value in (1.0, 0.25, 0.0):
        context.setParameter("lambda_ml", value)
        energy, forces = energy_forces(context)
        assert energy == pytest.approx(value * plain[0], rel=1e-12)
        np.testing.assert_allclose(forces, value * plain[1], rtol=1e-12, atol=1e-12)


def test_copies_of_a_force(model):
    atoms = ice()
    force = nequip_openmm.python_force(model, topology_of(atoms))
    plain = energy_forces(context_of(system_of(atoms, copy.copy(force)), atoms))
    again = energy_forces(context_of(system_of(atoms, copy.deepcopy(force)), atoms))
    assert copy.copy(force).usesPeriodicBoundaryConditions()
    assert plain[0] == again[0] == energy_forces(context_of(system_of(atoms, force), atoms))[0]  # which takes it away


def test_one_system_on_several_platforms(make_force):
    atoms = waters()
    system = system_of(atoms, make_force(atoms))
    energies = [energy_forces(context_of(system, atoms, platform))[0] for platform in (*PLATFORMS, *PLATFORMS)]
    np.testing.assert_allclose(energies, energies[0], rtol=1e-7)


def test_checkpoints_and_states_go_on_the_same(make_force):
    atoms = waters()
    context = context_of(system_of(atoms, make_force(atoms)), atoms)
    context.setVelocitiesToTemperature(300, 1)
    context.getIntegrator().step(3)
    checkpoint = context.createCheckpoint()
    xml = openmm.XmlSerializer.serialize(context.getState(positions=True, velocities=True))
    context.getIntegrator().step(5)
    expected = energy_forces(context)[1]
    context.loadCheckpoint(checkpoint)
    context.getIntegrator().step(5)
    np.testing.assert_array_equal(energy_forces(context)[1], expected)
    context.setState(openmm.XmlSerializer.deserialize(xml))
    context.getIntegrator().step(5)
    np.testing.assert_allclose(energy_forces(context)[1], expected, atol=1e-9)


FRESH = """
import sys
import openmm
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
context = openmm.Context(system, openmm.VerletIntegrator(1e-4), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(openmm.XmlSerializer.deserialize(open(sys.argv[2]).read()).getPositions())
context.getIntegrator().step(2)
print(repr(context.getState(energy=True).getPotentialEnergy()._value))
"""


def in_a_fresh_process(context: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    """Two steps of the same system, from XML."""
    paths = [folder / "system.xml", folder / "state.xml"]
    paths[0].write_text(openmm.XmlSerializer.serialize(context.getSystem()))
    paths[1].write_text(openmm.XmlSerializer.serialize(context.getState(positions=True)))
    command = [sys.executable, "-W", "ignore", "-c", FRESH, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_xml_in_a_fresh_process_without_the_model(model, tmp_path):
    gone = tmp_path / model.name
    gone.write_bytes(model.read_bytes())
    atoms = ice()
    context = context_of(system_of(atoms, nequip_openmm.python_force(gone, topology_of(atoms))), atoms, timestep=1e-4)
    gone.unlink()
    done = in_a_fresh_process(context, tmp_path)
    assert done.returncode == 0, done.stderr
    context.getIntegrator().step(2)
    energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert float(done.stdout.strip().removeprefix("np.float64(").rstrip(")")) == pytest.approx(energy, rel=1e-12)


def test_the_barostat_keeps_molecules_whole(model):
    atoms = waters()
    topology = topology_of(atoms)
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 1e-4)
    whole = nequip_openmm.create_system(topology, model)
    whole.addForce(openmm.MonteCarloBarostat(1000.0, 300.0, 1))
    context = openmm.Context(whole, integrator, openmm.Platform.getPlatformByName("Reference"))
    assert len(context.getMolecules()) == 8
    context.setPositions(atoms.positions / 10)
    before = context.getState().getPeriodicBoxVolume()
    integrator.step(12)
    state = context.getState(positions=True)
    assert state.getPeriodicBoxVolume() != before
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom).reshape(8, 3, 3)
    bonds = np.linalg.norm(positions[:, 1:] - positions[:, :1], axis=2)
    assert bonds.max() < 1.3
    alone = nequip_openmm.create_system(topology, model, keep_molecules=False)
    other = openmm.Context(alone, openmm.VerletIntegrator(1e-4), openmm.Platform.getPlatformByName("Reference"))
    assert len(other.getMolecules()) == 24


@pytest.mark.parametrize("platform", PLATFORMS)
def test_forces_of_other_atoms_stay_as_they_are_bit_for_bit(make_force, model, platform):
    atoms = waters()
    field = app.ForceField("tip3p.xml")
    topology = topology_of(atoms)
    options = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.35 * unit.nanometer, "rigidWater": False}
    plain = field.createSystem(topology, **options)
    mixed = field.createSystem(topology, **options)
    mixed.addForce(make_force(atoms, atoms=[0, 1, 2, 9, 10, 11]))
    without = energy_forces(context_of(plain, atoms, platform))
    with_model = energy_forces(context_of(mixed, atoms, platform))
    others = [n for n in range(24) if n not in (0, 1, 2, 9, 10, 11)]
    np.testing.assert_array_equal(with_model[1][others], without[1][others])
    assert np.abs(with_model[1][[0, 1, 2]] - without[1][[0, 1, 2]]).max() > 1e-3


def test_force_groups_and_multiple_time_steps(make_force):
    atoms = waters()
    force = make_force(atoms, atoms=[0, 1, 2])
    force.setForceGroup(1)
    field = app.ForceField("tip3p.xml").createSystem(topology_of(atoms), rigidWater=False)
    both = context_of(field, atoms)
    mm = energy_forces(both)[0]
    field.addForce(force)
    integrator = openmm.MTSLangevinIntegrator(300, 1.0, 2e-4, [(1, 1), (0, 2)])
    context = openmm.Context(field, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10)
    total, model_alone = energy_forces(context)[0], energy_forces(context, groups={1})[0]
    assert total == pytest.approx(mm + model_alone, rel=1e-9)
    integrator.step(3)
    assert np.isfinite(energy_forces(context)[0])


def test_a_molecule_that_the_box_has_cut_is_put_together(make_force, calculator):
    atoms = Atoms("COHH", [[0, 0, 0], [1.2, 0, 0], [-0.5, 0.9, 0], [-0.5, -0.9, 0]])
    atoms.calc = calculator()
    expected = atoms.get_potential_energy(), atoms.get_forces()
    box = np.array([[9.0, 0, 0], [2.0, 9.0, 0], [-3.0, 1.0, 9.0]])
    cut = Atoms(atoms.symbols, atoms.positions, cell=box, pbc=True)
    cut.positions += np.array([[1, 0, 0], [0, 0, 0], [0, -1, 1], [2, 0, -1]]) @ box
    found = energy_forces(context_of(system_of(cut, make_force(cut, periodic=False)), cut))
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-9)


def test_the_order_of_a_subset_is_the_users(make_force, calculator):
    atoms = waters()
    order = [9, 11, 10, 2, 0, 1]
    part = atoms[order]
    part.calc = calculator()
    energy, forces = energy_forces(context_of(system_of(atoms, make_force(atoms, atoms=order)), atoms))
    assert energy == pytest.approx(part.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(forces[order], part.get_forces(), atol=1e-9)
    assert not forces[[n for n in range(24) if n not in order]].any()
