"""The calculator: every change that ASE can make to atoms gives the numbers of a fresh calculator."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.filters import FrechetCellFilter
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS

from nequip_core.engines.ase import NequIPCalculator, check, type_table, voigt
from nequip_core.errors import ArtifactError, InputError
from nequip_core.export.artifact import load_model
from nequip_core.graph import build_graph
from nequip_core.moving import MovingGraph
from nequip_core.neighbors import SkinNeighborList, make_vesin
from nequip_core.plugins.manager import load_registry
from nequip_core.skin import SkinGraph
from nequip_core.structure import TypeMap

PROPERTIES = ("energy", "free_energy", "energies", "forces", "stress", "stresses")


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    return write_model(tmp_path / "tiny.nequip.zip")


@pytest.fixture
def make(model: Path) -> Callable[..., NequIPCalculator]:
    return lambda **options: NequIPCalculator.from_file(model, device="cpu", **options)


def with_list(model: Path, name: str, **options: Any) -> NequIPCalculator:
    return NequIPCalculator(load_model(model), load_registry().neighbor_lists[name], **options)


@pytest.fixture(params=["vesin", "device"])
def make_with_list(model: Path, request: pytest.FixtureRequest) -> Callable[..., NequIPCalculator]:
    """With a library's neighbours, as on the CPU, and with neighbours on the device, as on CUDA."""
    return lambda **options: with_list(model, request.param, **options)


def ice(seed: int = 0) -> Atoms:
    """H and O in a skewed cell, smaller than twice the cut-off."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(
        "OHHOHH",
        positions=[[0, 0, 0], [0.9, 0.3, 0], [-0.3, 0.9, 0], [2.2, 2, 2], [3.1, 2.2, 2], [2, 2.9, 2.3]],
        cell=[[4.4, 0, 0], [0.7, 4.3, 0], [0.2, -0.6, 4.1]],
        pbc=True,
    )
    atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
    return atoms


def assert_like_fresh(atoms: Atoms, make: Callable[..., NequIPCalculator]) -> None:
    """The attached calculator gives what a new one without a skin gives on a copy."""
    fresh = atoms.copy()
    fresh.calc = make(skin=0.0)
    names = PROPERTIES if atoms.pbc.all() else PROPERTIES[:4]
    for name in names:
        expected = fresh.calc.get_property(name, fresh)
        np.testing.assert_allclose(atoms.calc.get_property(name, atoms), expected, rtol=1e-12, atol=1e-10)


def test_forces_and_stress_are_derivatives_of_the_energy(make):
    atoms = ice()
    atoms.calc = make()
    forces, stress = atoms.get_forces(), atoms.get_stress()
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(atoms.get_stresses().sum(0), stress, atol=1e-12)
    step = 1e-4
    for atom, axis in ((0, 0), (1, 2), (4, 1)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = make()
            moved.positions[atom, axis] += sign * step
            energies.append(moved.get_potential_energy())
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-6)
    for component, (row, column) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += 0.5 * sign * step
            strain[column, row] += 0.5 * sign * step
            strained = atoms.copy()
            strained.calc = make()
            strained.set_cell(strained.cell.array @ strain, scale_atoms=True)
            energies.append(strained.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert stress[component] == pytest.approx(slope, abs=1e-7)


def test_stress_needs_three_periodic_directions(make):
    for pbc in (False, [True, True, False]):
        atoms = ice()
        atoms.pbc = pbc
        atoms.calc = make()
        for ask in (atoms.get_stress, atoms.get_stresses):
            with pytest.raises(PropertyNotImplementedError, match="all three"):
                ask()
        assert np.isfinite(atoms.get_forces()).all()
        assert "stress" not in atoms.calc.results


@pytest.mark.parametrize(("skin", "name"), [(0.0, "vesin"), (0.3, "vesin"), (1.0, "vesin"), (0.3, "device")])
@pytest.mark.no_cover
def test_skin_has_no_effect_on_a_trajectory(model, skin, name):
    start = ice()
    start.set_momenta(np.random.default_rng(1).normal(size=(6, 3)))
    ends = []
    for width, of in ((0.0, "vesin"), (skin, name)):
        atoms = start.copy()
        atoms.calc = with_list(model, of, skin=width)
        VelocityVerlet(atoms, timestep=1.0 * ase.units.fs).run(40)
        ends.append(atoms)
    np.testing.assert_allclose(ends[0].positions, ends[1].positions, atol=1e-8)
    assert np.abs(ends[1].positions - start.positions).max() > 0.5
    graph = ends[1].calc._moving.graph
    builds = graph.builds if isinstance(graph, SkinGraph) else graph.neighbors.builds
    assert builds < 41 if skin == 1.0 else builds >= 2


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda atoms: atoms.rattle(0.02, seed=1), id="within the skin"),
        pytest.param(lambda atoms: atoms.rattle(0.8, seed=1), id="beyond the skin"),
        pytest.param(lambda atoms: atoms.set_cell(atoms.cell * 1.02, scale_atoms=True), id="cell and atoms"),
        pytest.param(lambda atoms: atoms.set_cell(atoms.cell * 1.02), id="cell"),
        pytest.param(lambda atoms: atoms.set_pbc([True, False, True]), id="pbc"),
        pytest.param(lambda atoms: atoms.set_pbc(False), id="no pbc"),
        pytest.param(lambda atoms: atoms.extend(Atoms("H", [[1.5, 1.5, 3.0]])), id="one atom more"),
        pytest.param(lambda atoms: atoms.__delitem__(2), id="one atom less"),
        pytest.param(lambda atoms: atoms.set_atomic_numbers(atoms.numbers[::-1]), id="elements"),
        pytest.param(
            lambda atoms: (atoms.set_positions(atoms.positions[::-1]), atoms.set_atomic_numbers(atoms.numbers[::-1])),
            id="order",
        ),
        pytest.param(lambda atoms: atoms.translate([40.0, -31.0, 7.0]), id="outside the cell"),
        pytest.param(
            lambda atoms: atoms.positions.__iadd__(atoms.cell.array[0] * [[0], [1], [0], [-3], [0], [0]]), id="image"
        ),
    ],
)
def test_after_a_change(make, make_with_list, change):
    atoms = ice()
    atoms.calc = make_with_list()
    atoms.get_potential_energy()
    change(atoms)
    assert_like_fresh(atoms, make)


def test_two_atoms_objects_in_turn(make, make_with_list):
    first, second, third = ice(), molecule("H2O"), ice(1)
    shared = make_with_list()
    first.calc = second.calc = third.calc = shared
    for _ in range(2):
        for atoms in (first, second, third):
            atoms.rattle(0.01, seed=3)
            assert_like_fresh(atoms, make)


def test_npt(make):
    atoms = ice()
    atoms.calc = make()
    volume = atoms.get_volume()
    IsotropicMTKNPT(
        atoms,
        timestep=0.2 * ase.units.fs,
        temperature_K=300,
        pressure_au=0.05,
        tdamp=20 * ase.units.fs,
        pdamp=20 * ase.units.fs,
    ).run(10)
    assert atoms.get_volume() != pytest.approx(volume, rel=1e-3)
    assert_like_fresh(atoms, make)


def test_cell_filter(make):
    atoms = ice()
    atoms.calc = make()
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.02).run(fmax=1e-9, steps=5)
    assert atoms.get_potential_energy() < before
    assert_like_fresh(atoms, make)


def test_deepcopy_is_its_own_and_shares_the_weights(make, make_with_list):
    atoms = ice()
    atoms.calc = make_with_list()
    energy = atoms.get_potential_energy()
    other = copy.deepcopy(atoms)
    assert other.calc is not atoms.calc
    assert other.calc.loaded is atoms.calc.loaded
    assert other.get_potential_energy() == energy
    other.rattle(0.5, seed=2)
    assert_like_fresh(other, make)
    assert atoms.get_potential_energy() == energy
    assert_like_fresh(atoms, make)


def energy_and_forces(pickled: bytes) -> tuple[float, np.ndarray]:
    atoms = pickle.loads(pickled)
    atoms.positions += 0.0  # same atoms: stored results
    energy = atoms.get_potential_energy()
    atoms.calc.reset()
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-10)
    return energy, atoms.get_forces()


def test_pickle_to_a_worker(model):
    atoms = ice()
    atoms.calc = with_list(model, "device")
    expected = atoms.get_potential_energy(), atoms.get_forces()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        energy, forces = pool.apply(energy_and_forces, (pickle.dumps(atoms),))
    assert energy == expected[0]
    np.testing.assert_allclose(forces, expected[1], atol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_neb(make, shared):
    first, last = ice(), ice()
    last.positions[1] += [0.2, 0.3, 0.1]
    images = [first.copy(), *(first.copy() for _ in range(2)), last.copy()]
    calc = make()
    for image in images:
        image.calc = calc if shared else make()
    band = NEB(images, allow_shared_calculator=shared, method="improvedtangent")
    band.interpolate(mic=True)
    forces = band.get_forces()
    assert forces.shape == (12, 3)
    singles = []
    for image in images[1:3]:
        fresh = image.copy()
        fresh.calc = make(skin=0.0)
        singles.append(fresh.get_potential_energy())
    np.testing.assert_allclose(band.energies[1:3], singles, atol=1e-10)


def test_over_a_socket(make):
    """As i-PI asks it: ASE's server in its place, forces and stress through a UNIX socket."""
    name = f"nequip-{os.getpid()}"
    atoms, moved = ice(), ice(1)
    client = ice()
    client.calc = make()
    with SocketIOCalculator(unixsocket=name) as server:
        answering = threading.Thread(
            target=lambda: SocketClient(unixsocket=name, timeout=60).run(client, use_stress=True), daemon=True
        )
        answering.start()
        received = []
        for system in (atoms, moved):
            system.calc = server
            received.append((system.get_potential_energy(), system.get_forces(), system.get_stress()))
    answering.join(timeout=60)
    assert not answering.is_alive()
    for system, (energy, forces, stress) in zip((atoms, moved), received, strict=True):
        system.calc = make()
        assert energy == pytest.approx(system.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(forces, system.get_forces(), atol=1e-10)
        np.testing.assert_allclose(stress, system.get_stress(), atol=1e-10)


def test_unknown_element(make):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = make()
    with pytest.raises(InputError, match=r"Cu.*types are H, O"):
        atoms.get_potential_energy()


def test_positions_that_are_not_finite(make_with_list):
    atoms = ice()
    atoms.calc = make_with_list()
    atoms.get_potential_energy()
    atoms.positions[2, 1] = np.nan
    with pytest.raises(InputError, match="not finite"):
        atoms.get_forces()


def test_no_atoms_near_and_a_single_atom(make_with_list):
    atoms = Atoms("OH", positions=[[0, 0, 0], [1000.0, 0, 0]])
    atoms.calc = make_with_list()
    assert atoms.get_potential_energy() == pytest.approx(-443.6)
    np.testing.assert_array_equal(atoms.get_forces(), np.zeros((2, 3)))
    atoms.set_cell(np.eye(3) * 2000)
    atoms.pbc = True
    np.testing.assert_array_equal(atoms.get_stress(), np.zeros(6))
    del atoms[0]
    assert atoms.get_potential_energy() == pytest.approx(-13.6)


def test_types_finer_than_elements(tmp_path, write_model):
    keys = {
        "types": ["H", "Ow", "Os"],
        "elements": {"Ow": "O", "Os": "O"},
        "atomic_energies": {"H": -13.6, "Ow": -430.0, "Os": -431.0},
        "energy_scale": 1.0,
    }
    path = write_model(tmp_path / "a.nequip.zip", **keys)
    atoms = ice()
    atoms.calc = NequIPCalculator.from_file(path, device="cpu")
    with pytest.raises(InputError, match=r"several types of O: Ow, Os.*types="):
        atoms.get_potential_energy()
    energies = []
    for name in ("Ow", "Os"):
        atoms.calc = NequIPCalculator.from_file(path, device="cpu", types={"O": name})
        energies.append(atoms.get_potential_energies())
    assert np.abs(energies[0] - energies[1]).max() > 0.5
    with pytest.raises(InputError, match="can not be 'H'"):
        NequIPCalculator.from_file(path, device="cpu", types={"O": "H"})


def test_type_table():
    table = type_table(TypeMap(("H", "Ow"), ("H", "O")), {})
    assert table[[1, 8, 6]].tolist() == [0, 1, -1]


def test_threads_and_random_numbers_are_left_alone(make):
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    atoms = ice()
    atoms.calc = make()
    atoms.get_forces()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


def test_atoms_are_not_changed(make):
    atoms = ice()
    atoms.positions += 30.0
    before = atoms.copy()
    atoms.calc = make()
    atoms.get_stress()
    assert atoms == before


def test_file_not_found(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.ckpt"):
        NequIPCalculator.from_file(tmp_path / "none.ckpt")


def test_moving_graph_is_the_sorted_graph():
    """Filtering a wide list gives what building from scratch gives, asymmetric cut-offs included."""
    rng = np.random.default_rng(5)
    cutoffs = np.array([[2.0, 3.0], [2.6, 3.4]])
    cell, pbc = np.array([[4.0, 0, 0], [1.0, 4.5, 0], [0, 0.5, 5.0]]), np.array([True, True, False])
    positions, types = rng.uniform(size=(9, 3)) @ cell, rng.integers(0, 2, size=9)
    neighbors = SkinNeighborList(make_vesin, 3.4, 0.8)
    moving = MovingGraph(neighbors, cutoffs, torch.device("cpu"))
    for _ in range(12):
        positions = positions + rng.uniform(-0.06, 0.06, size=positions.shape)
        expected = build_graph(positions, types, make_vesin(3.4)(positions, cell, pbc), cell, cutoffs)
        for name, got, want in zip(expected._fields, moving(positions, types, cell, pbc), expected, strict=True):
            assert got.dtype == want.dtype, name
            torch.testing.assert_close(got, want, msg=name)
    assert 1 <= neighbors.builds < 12


def test_voigt_order():
    tensor = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    assert voigt(tensor).tolist() == [1, 2, 3, 4, 5, 6]


def test_check():
    usable, sentence = check()
    assert usable
    assert "ASE" in sentence
    assert load_registry().engines["ase"].check.load() is check
