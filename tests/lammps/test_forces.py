"""LAMMPS against the ASE calculator of the same weights: energies, forces, virials, of all and of each atom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from lammps_support import (
    PER_ATOM,
    TYPES,
    Lammps,
    Model,
    assert_close,
    assert_equal,
    droplet,
    expected,
    fluid,
    setup,
    skewed,
    write_data,
)

from nequip_core.graph import build_graph, edge_vectors
from nequip_core.neighbors import Pairs

SYSTEMS: dict[str, Callable[[], Atoms]] = {
    "smaller_than_the_ghost_distance": lambda: fluid(14, 6.0),
    "its_own_neighbour": lambda: fluid(2, 3.2),
    "triclinic": skewed,
    "vacuum": droplet,
}


@pytest.fixture(params=["allegro", "nequip"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("newton", ["on", "off"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_equal_to_ase(model: Model, system: str, newton: str, tmp_path: Path) -> None:
    atoms = SYSTEMS[system]()
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled, newton=newton) + PER_ATOM + "run 0")
        received = lammps.results()
    assert_equal(received, expected(model, atoms))
    assert_close(received.energies.sum(), received.energy, 1e-12)
    assert_close(received.virials.sum(0), received.virial, 1e-10)
    assert_close(received.centroids[:, :3].sum(0), received.virial[:3], 1e-10)


def test_one_atom_alone(model: Model, tmp_path: Path) -> None:
    atoms = fluid(1, 9.0, symbols=["O"])
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled) + "run 0")
        assert_close(lammps.thermo("pe"), expected(model, atoms).energy, 1e-12)
        assert np.array_equal(lammps.results().forces, np.zeros((1, 3)))


@pytest.mark.parametrize("options", ["neighbor core", "neighbor lmplist", "block 3", "block 1000", "tensors"])
def test_lists_and_blocks_are_the_same(
    model: Model, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options == "tensors":  # the list that GPUs have, on the CPU
        monkeypatch.setenv("NEQUIP_LAMMPS_LIST", "tensors")
        options = "block 5"
    atoms = fluid(30, 8.0, seed=1)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled, options=options) + PER_ATOM + "run 0")
        assert_equal(lammps.results(), expected(model, atoms))
        # Atoms that move by more than any list's margin, and then by less.
        lammps.run("velocity all create 3000 1\nfix 1 all nve\ntimestep 0.001\nrun 60")
        moved = lammps.results()
        atoms.positions = moved.positions
        assert_equal(moved, expected(model, atoms))


@pytest.mark.parametrize("boundary", ["s s s", "m m m", "p p f", "p f s"])
def test_directions_that_are_not_periodic(model: Model, boundary: str, tmp_path: Path) -> None:
    atoms = fluid(16, 6.5, seed=2)
    data = write_data(tmp_path / "data", atoms)
    atoms.pbc = [one == "p" for one in boundary.split()]
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled, boundary=boundary) + "run 0")
        received = lammps.results()
    wanted = expected(model, atoms)
    assert_close(received.energy, wanted.energy, 1e-10)
    assert_close(received.forces, wanted.forces, 1e-10)


def test_real_units(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled, units="real") + "run 0")
        energy, forces = lammps.thermo("pe"), lammps.results().forces
        pressure = lammps.thermo("pxx")
    wanted = expected(model, atoms)
    kcal_per_mol = 23.060549  # per eV, as in LAMMPS' own conversions
    assert_close(energy, wanted.energy * kcal_per_mol, 1e-10)
    assert_close(forces, wanted.forces * kcal_per_mol, 1e-10)
    assert_close(pressure, wanted.virial[0] * kcal_per_mol / atoms.get_volume() * 68568.415, 1e-7)  # atmospheres


def test_pressure_is_the_derivative_of_the_energy(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    step = 1e-4
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled) + "run 0")
        pressure = lammps.results().virial[:3].sum() / 3 / atoms.get_volume()
        energies = []
        for scale in (1 + step, (1 - step) / (1 + step)):
            lammps.run(f"change_box all x scale {scale} y scale {scale} z scale {scale} remap\nrun 0")
            energies.append(lammps.thermo("pe"))
    volumes = [atoms.get_volume() * (1 + sign * step) ** 3 for sign in (1, -1)]
    assert_close(pressure, -(energies[0] - energies[1]) / (volumes[0] - volumes[1]), 1e-6)


def jacobian_virials(model: Model, atoms: Atoms) -> Any:
    """W_i = sum over j of (r_j - r_i) (x) dU_j/dr_i of a finite system, from the whole Jacobian of its energies."""
    loaded = model.calculator().loaded
    i, j = np.nonzero(~np.eye(len(atoms), dtype=bool))
    types = np.array([TYPES.index(symbol) for symbol in atoms.get_chemical_symbols()])
    graph = build_graph(
        atoms.positions, types, Pairs(i, j, np.zeros((len(i), 3))), np.eye(3), np.array(loaded.info.pair_cutoffs)
    )
    potential: Any = loaded.potential

    def energies(positions: torch.Tensor) -> torch.Tensor:
        moved = graph._replace(positions=positions)
        found: torch.Tensor = potential.model(moved, edge_vectors(moved))
        return found

    jacobian = torch.autograd.functional.jacobian(energies, graph.positions)  # [j, i, 3]
    difference = graph.positions[None, :, :] - graph.positions[:, None, :]  # [i, j, 3]: r_j - r_i
    return torch.einsum("ija,jib->iab", difference, jacobian).numpy()


def test_centroid_virials_are_those_of_the_jacobian(allegro: Model, tmp_path: Path) -> None:
    atoms = droplet(30)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(setup(data, allegro.compiled) + PER_ATOM + "run 0")
        received = lammps.results().centroids
    wanted = jacobian_virials(allegro, atoms)
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]
    assert_close(received, np.stack([wanted[:, a, b] for a, b in order], 1), 1e-8)


def test_heat_flux_of_a_strictly_local_model(allegro: Model, tmp_path: Path) -> None:
    """J = sum over i of U_i v_i + W_i v_i, with LAMMPS' kinetic energy in U_i."""
    atoms = droplet(30)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(
            setup(data, allegro.compiled)
            + PER_ATOM
            + "compute kinetic all ke/atom\ncompute flux all heat/flux kinetic energies centroids\n"
            + "velocity all create 300 7\nthermo_style custom step pe press c_flux[1] c_flux[2] c_flux[3]\nrun 0"
        )
        flux = np.array(lammps.it.numpy.extract_compute("flux", 0, 1)[:3])
        local = lammps.results()
        order = np.argsort(lammps.it.numpy.extract_atom("id")[: len(atoms)])
        velocities = lammps.it.numpy.extract_atom("v")[: len(atoms)][order]
        kinetic = lammps.it.numpy.extract_compute("kinetic", 1, 1)[: len(atoms)][order]
    potential = np.einsum("iab,ib->a", jacobian_virials(allegro, atoms), velocities)
    wanted = ((local.energies + kinetic)[:, None] * velocities).sum(0) + potential
    assert_close(flux, wanted, 1e-7)  # nktv2p has seven digits
