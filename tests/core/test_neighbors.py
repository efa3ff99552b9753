"""Neighbour lists against brute force, and reuse with a skin."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nequip_core.neighbors import NeighborList, Pairs, SkinNeighborList, make_device, make_matscipy, make_vesin
from nequip_core.structure import Floats, Ints

Bools = NDArray[np.bool_]
CUTOFF = 3.0
MAKERS = {"matscipy": make_matscipy, "vesin": make_vesin, "device": make_device}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., NeighborList]:
    return MAKERS[request.param]


def rows(pairs: Pairs) -> Ints:
    """[E, 5] centre, neighbour and shift, in order."""
    table = np.column_stack([pairs.centre, pairs.neighbor, pairs.shift])
    return table[np.lexsort(table.T[::-1])]


def brute_force(positions: Floats, cell: Floats, pbc: Bools, cutoff: float) -> Ints:
    """The same from all distances to all images that could be near: those within the planes' distances."""
    images = [np.zeros(1, dtype=np.int64)] * 3
    if pbc.any():
        # Reciprocal vectors of the periodic rows: one over their length is the distance between lattice planes.
        reciprocal = np.linalg.pinv(cell[pbc])
        reach = cutoff * np.linalg.norm(reciprocal, axis=0) + np.ptp(positions @ reciprocal, axis=0)
        for direction, n in zip(np.flatnonzero(pbc), np.ceil(reach).astype(int), strict=True):
            images[direction] = np.arange(-n, n + 1)
    shifts = np.stack(np.meshgrid(*images, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = (positions[None, :] - positions[:, None])[:, :, None] + shifts @ cell
    distance = np.linalg.norm(vectors, axis=-1)
    # An atom is not its own neighbour, but its images are.
    distance[np.eye(len(positions), dtype=bool)[:, :, None] & (shifts == 0).all(axis=1)] = np.inf
    i, j, s = np.nonzero(distance < cutoff)
    table = np.column_stack([i, j, shifts[s]])
    return table[np.lexsort(table.T[::-1])]


def random_system(number: int) -> tuple[Floats, Floats, Bools]:
    """1 to 6 atoms, also outside a skewed cell of about 2 Å: below the cut-off; any periodicity, zero rows too."""
    rng = np.random.default_rng(number)
    pbc = rng.random(3) < (1.0, 0.5, 0.0)[number % 3]
    cell = rng.normal(scale=2.0, size=(3, 3))
    while abs(np.linalg.det(cell)) < 4.0:
        cell = rng.normal(scale=2.0, size=(3, 3))
    positions = rng.uniform(-1.5, 2.5, size=(rng.integers(1, 7), 3)) @ cell
    if number % 4 == 1:
        cell[~pbc] = 0.0
    return positions, cell, pbc


@pytest.mark.no_cover
def test_1000_random_cells(make: Callable[..., NeighborList]) -> None:
    neighbor_list = make(CUTOFF)
    edges = 0
    for number in range(1000):
        system = random_system(number)
        expected = brute_force(*system, CUTOFF)
        np.testing.assert_array_equal(rows(neighbor_list(*system)), expected, err_msg=f"system {number}")
        edges += len(expected)
    assert edges > 50_000  # the test is about something


def test_slanted_cell_with_images_far_along_one_vector(make: Callable[..., NeighborList]) -> None:
    cell = np.array([[3.0, 0.0, 0.0], [14.0, 1.5, 0.0], [-11.0, 4.0, 2.0]])
    positions = np.array([[0.1, 0.2, 0.3], [20.0, -3.0, 1.0]])
    system = positions, cell, np.full(3, True)
    pairs = make(4.0)(*system)
    np.testing.assert_array_equal(rows(pairs), brute_force(*system, 4.0))
    assert abs(pairs.shift).max() > 5


def test_one_atom_without_a_cell(make: Callable[..., NeighborList]) -> None:
    pairs = make(CUTOFF)(np.ones((1, 3)), np.zeros((3, 3)), np.full(3, False))
    assert (len(pairs.centre), len(pairs.neighbor), pairs.shift.shape) == (0, 0, (0, 3))


def test_no_atoms(make: Callable[..., NeighborList]) -> None:
    for periodic in (True, False):
        pairs = make(CUTOFF)(np.zeros((0, 3)), np.eye(3) * 4 * periodic, np.full(3, periodic))
        assert (len(pairs.centre), pairs.shift.shape) == (0, (0, 3))


def test_one_atom_sees_its_images(make: Callable[..., NeighborList]) -> None:
    pairs = make(CUTOFF)(np.array([[9.0, -7.0, 0.5]]), 2.5 * np.eye(3), np.full(3, True))
    assert len(pairs.centre) == 6


def test_far_apart(make: Callable[..., NeighborList]) -> None:
    positions = np.array([[0.0, 0.0, 0.0], [1e4, 0.0, 0.0]])
    assert len(make(CUTOFF)(positions, np.zeros((3, 3)), np.full(3, False)).centre) == 0


def test_types_and_inputs(make: Callable[..., NeighborList]) -> None:
    system = random_system(3)
    before = copy.deepcopy(system)
    for array in make(CUTOFF)(*system):
        assert array.dtype == np.int64
    for array, untouched in zip(system, before, strict=True):
        np.testing.assert_array_equal(array, untouched)


@pytest.mark.no_cover
def test_skin_holds_every_pair_on_the_way(make: Callable[..., NeighborList]) -> None:
    """A random walk: what is within the cut-off is never missing, and most steps make no list."""
    rng = np.random.default_rng(0)
    cell, pbc = np.diag([6.0, 7.0, 8.0]), np.full(3, True)
    positions = rng.uniform(-5, 10, size=(30, 3))
    skin = SkinNeighborList(make, CUTOFF, 0.6)
    for _ in range(100):
        positions = positions + rng.normal(scale=0.02, size=positions.shape)
        pairs = skin(positions, cell, pbc)
        r = np.linalg.norm(positions[pairs.neighbor] - positions[pairs.centre] + pairs.shift @ cell, axis=1)
        near = Pairs(*(array[r < CUTOFF] for array in pairs))
        np.testing.assert_array_equal(rows(near), brute_force(positions, cell, pbc, CUTOFF))
    assert 1 < skin.builds < 50


def test_skin_is_made_anew_when_it_must(make: Callable[..., NeighborList]) -> None:
    positions, cell, pbc = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), 9 * np.eye(3), np.full(3, True)
    skin = SkinNeighborList(make, CUTOFF, 1.0)
    builds = []
    moved = positions + np.array([[0.0, 0.0, 0.0], [0.49, 0.0, 0.0]])
    too_far = positions + np.array([[0.0, 0.0, 0.0], [0.51, 0.0, 0.0]])
    for system in [
        (positions, cell, pbc),
        (moved, cell, pbc),
        (too_far, cell, pbc),
        (too_far, cell * 1.001, pbc),
        (too_far, cell * 1.001, np.array([True, True, False])),
        (too_far[:1], cell * 1.001, np.array([True, True, False])),
        (too_far[:1], cell * 1.001, np.array([True, True, False])),
    ]:
        skin(*system)
        builds.append(skin.builds)
    assert builds == [1, 1, 2, 3, 4, 5, 5]


def test_skin_keeps_no_reference_to_positions(make: Callable[..., NeighborList]) -> None:
    positions, cell, pbc = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.zeros((3, 3)), np.full(3, False)
    skin = SkinNeighborList(make, CUTOFF, 1.0)
    assert len(skin(positions, cell, pbc).centre) == 2
    positions[1, 0] = 50.0
    assert len(skin(positions, cell, pbc).centre) == 0
