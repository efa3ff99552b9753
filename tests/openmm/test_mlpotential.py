"""openmm-ml's potentials: whole systems, mixed ones, interpolation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import app, unit
from openmm_support import PLATFORMS, context_of, energy_forces, topology_of, waters
from openmmml import MLPotential

from nequip_openmm.mlpotential import CompiledPotential

LIGAND = [0, 1, 2, 12, 13, 14]


def field_system(topology: app.Topology, **options: Any) -> openmm.System:
    method = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.35 * unit.nanometer}
    return app.ForceField("tip3p.xml").createSystem(topology, **{"rigidWater": False, **method, **options})


@pytest.fixture
def potential(model: Path) -> MLPotential:
    return MLPotential("nequip-compiled", modelPath=model)


@pytest.mark.parametrize("name", ["nequip-compiled", "allegro-compiled"])
def test_a_whole_system(name, model, calculator):
    atoms = waters()
    system = MLPotential(name, modelPath=model).createSystem(topology_of(atoms))
    context = context_of(system, atoms)
    atoms.calc = calculator()
    energy, forces = energy_forces(context)
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-9)
    assert len(context.getMolecules()) == 8
    assert system.getNumConstraints() == 0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_mixed_system_leaves_the_other_atoms_to_the_force_field(potential, platform):
    atoms = waters()
    topology = topology_of(atoms)
    mixed = potential.createMixedSystem(topology, field_system(topology), LIGAND, forceGroup=3)
    context = context_of(mixed, atoms, platform)
    assert len(context.getMolecules()) == 8
    # What remains without the model's group is the force field alone, bit for bit.
    rest = potential.createMixedSystem(topology, field_system(topology), LIGAND, forceGroup=3, keep_molecules=False)
    for index in reversed(range(rest.getNumForces())):
        if rest.getForce(index).getForceGroup() == 3:
            rest.removeForce(index)
    others = [n for n in range(24) if n not in LIGAND]
    together, alone = energy_forces(context)[1], energy_forces(context_of(rest, atoms, platform))[1]
    np.testing.assert_array_equal(together[others], alone[others])
    assert np.abs(together[LIGAND] - alone[LIGAND]).max() > 1e-3


def test_the_model_sees_its_atoms_only(potential, calculator):
    atoms = waters()
    topology = topology_of(atoms)
    mixed = potential.createMixedSystem(topology, field_system(topology), LIGAND, forceGroup=3)
    energy, forces = energy_forces(context_of(mixed, atoms), groups={3})
    part = atoms[LIGAND]
    part.calc = calculator()
    assert energy == pytest.approx(part.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(forces[LIGAND], part.get_forces(), atol=1e-9)


def test_interpolation_between_force_field_and_model(potential):
    atoms = waters()
    topology = topology_of(atoms)
    water = [0, 1, 2]  # one molecule: between several openmm-ml forgets the cut-off
    mm, _ = energy_forces(context_of(field_system(topology), atoms))
    mixed, _ = energy_forces(context_of(potential.createMixedSystem(topology, field_system(topology), water), atoms))
    between = potential.createMixedSystem(topology, field_system(topology), water, interpolate=True)
    context = context_of(between, atoms)
    for value in (0.0, 0.3, 1.0):
        context.setParameter("lambda_interpolate", value)
        energy, _ = energy_forces(context)
        assert energy == pytest.approx((1 - value) * mm + value * mixed, rel=1e-7)


def test_constraints_in_the_region_are_said_and_never_added(potential):
    atoms = waters()
    topology = topology_of(atoms)
    with pytest.warns(UserWarning, match=r"constrains 6 pairs of atoms of the model .* 0\.5 fs"):
        mixed = potential.createMixedSystem(topology, field_system(topology, rigidWater=True), LIGAND)
    assert mixed.getNumConstraints() == 18
    kept = [mixed.getConstraintParameters(n)[:2] for n in range(18)]
    assert not any(i in LIGAND or j in LIGAND for i, j in kept)
    assert potential.createMixedSystem(topology, field_system(topology), LIGAND).getNumConstraints() == 0


def test_link_atoms_are_hydrogen(model):
    """A bond across the border: openmm-ml caps it by a virtual site, which the model sees as H."""
    topology = app.Topology()
    residue = topology.addResidue("LIG", topology.addChain())
    elements = [app.element.oxygen, app.element.carbon, app.element.carbon, app.element.oxygen]
    added = [topology.addAtom(f"A{n}", element, residue) for n, element in enumerate(elements)]
    for one, other in pairwise(added):
        topology.addBond(one, other)
    system = openmm.System()
    for atom in added:
        system.addParticle(atom.element.mass)
    mixed = MLPotential("nequip-compiled", modelPath=model).createMixedSystem(topology, system, [0, 1])
    assert mixed.getNumParticles() == 5
    context = openmm.Context(mixed, openmm.VerletIntegrator(1e-4), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.array([[0, 0, 0], [0.12, 0, 0], [0.2, 0.12, 0], [0.3, 0.2, 0.1], [0, 0, 0]]))
    context.computeVirtualSites()
    energy, forces = energy_forces(context)
    assert np.isfinite(energy)
    np.testing.assert_allclose(forces[:4].sum(0), 0, atol=1e-8)  # the site's own has been handed on
    assert np.abs(forces[2]).max() > 1e-3  # pulled by the cap
    assert not forces[3].any()


def test_virtual_sites_are_not_seen(model, calculator):
    atoms = waters()
    modeller = app.Modeller(topology_of(atoms), atoms.positions / 10 * unit.nanometer)
    modeller.addExtraParticles(app.ForceField("tip4pew.xml"))
    assert modeller.topology.getNumAtoms() == 32
    system = MLPotential("nequip-compiled", modelPath=model).createSystem(modeller.topology)
    context = openmm.Context(system, openmm.VerletIntegrator(1e-4), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(modeller.positions)
    atoms.calc = calculator()
    assert energy_forces(context)[0] == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    context.getIntegrator().step(2)
    with pytest.raises(openmm.OpenMMException, match="Particle 3 has no element: a virtual site"):
        CompiledPotential("nequip-compiled", model).addForces(modeller.topology, openmm.System(), [0, 3], 0)


def test_options_that_are_none(model):
    with pytest.raises(openmm.OpenMMException, match=r"lengthScale is no option .* units need no scale"):
        MLPotential("nequip-compiled", modelPath=model, lengthScale=0.1)
    with pytest.raises(openmm.OpenMMException, match=r'Expected MLPotential\("nequip-compiled", modelPath='):
        MLPotential("nequip-compiled")
    with pytest.raises(openmm.OpenMMException, match="precision is no option"):
        MLPotential("nequip-compiled", modelPath=model).createSystem(topology_of(waters()), precision="single")
