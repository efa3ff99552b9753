"""Energies and forces in OpenMM are those of the ASE calculator, whichever way the model gets there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from ase import Atoms
from openmm_support import PLATFORMS, SYSTEMS, context_of, energy_forces, hosted, system_of, topology_of

import nequip_openmm

WAYS = ("python", "torch", "torch, energy only")


def force_of(way: str, model: Path, atoms: Any, folder: Path, **options: Any) -> openmm.Force:
    """A force of the model for a topology or for elements."""
    if way == "python":
        return nequip_openmm.python_force(model, atoms, **options)
    only = way == "torch, energy only"
    path = nequip_openmm.export_torchforce(model, atoms, folder / "model.pt", energy_only=only, **options)
    spec = nequip_openmm.torchforce.read_spec(path)
    parameters = () if spec.parameter is None else (spec.parameter,)
    return hosted(path, periodic=spec.box, outputs_forces=not only, parameters=parameters)


def expected(atoms: Atoms, calculator: Callable[[], Any]) -> tuple[float, np.ndarray]:
    copy = atoms.copy()
    copy.calc = calculator()
    return copy.get_potential_energy(), copy.get_forces()


def assert_same(found: tuple[float, np.ndarray], wanted: tuple[float, np.ndarray], relative: float = 1e-9) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=relative)
    rms = np.sqrt((wanted[1] ** 2).mean())
    np.testing.assert_allclose(found[1], wanted[1], rtol=0, atol=relative * max(rms, 1e-6))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_energy_and_forces_equal_the_calculators(name, way, platform, model, calculator, tmp_path):
    atoms = SYSTEMS[name]()
    force = force_of(way, model, topology_of(atoms), tmp_path)
    found = energy_forces(context_of(system_of(atoms, force), atoms, platform))
    # The platform CPU keeps positions in single precision.
    assert_same(found, expected(atoms, calculator), 1e-9 if platform == "Reference" else 1e-5)
