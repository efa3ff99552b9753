"""Graphs of systems that move, listed by tensors: what building from scratch on the CPU gives, at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from ase.build import bulk

from nequip_core.errors import InputError
from nequip_core.graph import Graph, build_graph, collate
from nequip_core.narrow import Narrowing
from nequip_core.neighbors import DEVICE, make_vesin
from nequip_core.plugins.manager import load_registry
from nequip_core.skin import SkinGraph, serves
from nequip_core.structure import Floats, Structure
from nequip_core.testing import systems

UNIFORM = np.full((3, 3), systems.CUTOFF)
ASYMMETRIC = np.array([[2.4, 2.8, 3.0], [2.5, 2.2, 2.6], [2.7, 3.0, 2.3]])
CPU = torch.device("cpu")
LIST = load_registry().neighbor_lists[DEVICE]


def indices(structure: Structure) -> np.ndarray:
    names = structure.type_names or ()
    return np.array([systems.TYPES.index(name) for name in names], dtype=np.int64)


def by_library(structures: Sequence[Structure], cutoffs: Floats) -> Graph:
    graphs = []
    for one in structures:
        pairs = make_vesin(float(cutoffs.max()))(one.positions, one.cell, one.pbc)
        graphs.append(build_graph(one.positions, indices(one), pairs, one.cell * one.pbc[:, None], cutoffs))
    return collate(graphs)


def by_skin(moving: SkinGraph, structures: Sequence[Structure]) -> Graph:
    return moving.batch(
        np.concatenate([one.positions for one in structures]),
        np.concatenate([indices(one) for one in structures]),
        np.stack([one.cell for one in structures]),
        np.stack([one.pbc for one in structures]),
        np.array([len(one) for one in structures]),
    )


def narrow(cutoffs: Floats) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    function = Narrowing(cutoffs)
    return lambda tensors: list(function(*tensors))


def assert_same(received: Graph, expected: Graph) -> None:
    for name, got, want in zip(Graph._fields, received, expected, strict=True):
        assert got.dtype == want.dtype, name
        assert got.is_contiguous(), name
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12 if got.dtype == torch.float64 else 0, msg=name)


def walked(structures: Sequence[Structure], rng: np.random.Generator, step: float) -> list[Structure]:
    return [
        systems.replaced(one, positions=one.positions + rng.uniform(-step, step, size=one.positions.shape))
        for one in structures
    ]


@pytest.mark.parametrize("cutoffs", [UNIFORM, ASYMMETRIC], ids=["uniform", "asymmetric"])
@pytest.mark.parametrize("skin", [0.0, 0.6])
def test_edges_in_tensors_of_fixed_sizes(cutoffs: Floats, skin: float) -> None:
    """Another list of the same systems, with rows without use and atoms without edges at the end."""
    rng = np.random.default_rng(2)
    structures = [*systems.systems().values(), systems.structure([], np.zeros((0, 3))), systems.molecule()]
    moving = SkinGraph(LIST, cutoffs, skin, CPU)
    by_skin(moving, structures)
    assert moving.listed is not None
    beyond = torch.tensor([7.0, 8, 9], dtype=torch.float64)
    edges = len(moving.listed.wide.edge_shift) + 100
    fixed = moving.fixed(moving.listed, edges, 3, beyond)
    assert fixed is not None
    for _ in range(3):
        structures = walked(structures, rng, 0.3)
        moving.forget()
        by_skin(moving, structures)
        wide = moving.listed.wide
        number, atoms = len(wide.edge_shift), len(wide.positions)
        found = fixed(wide.positions)
        assert number < edges
        assert found.lacking.tolist() == [0]
        assert torch.equal(found.edge_index, torch.nn.functional.pad(wide.edge_index, (0, edges - number)))
        torch.testing.assert_close(
            found.edge_shift, torch.cat([wide.edge_shift, beyond.expand(edges - number, 3)]), rtol=0, atol=1e-12
        )
        assert found.by_neighbor.tolist() == [*wide.by_neighbor.tolist(), *range(number, edges)]
        for name in ("row_ptr", "neighbor_ptr"):
            assert getattr(found, name).tolist() == [*getattr(wide, name).tolist(), *[number] * 3]
        assert len(found.row_ptr) == atoms + 4
    few = moving.fixed(moving.listed, number - 5, 3, beyond)
    assert few is not None
    assert few(wide.positions).lacking.tolist() == [5]


@pytest.mark.parametrize("cutoffs", [UNIFORM, ASYMMETRIC], ids=["uniform", "asymmetric"])
@pytest.mark.parametrize("skin", [0.0, 0.6])
@pytest.mark.parametrize("compiled", [False, True])  # or the function that is, which is the same eager
def test_a_walk_of_a_batch(cutoffs: Floats, skin: float, compiled: bool) -> None:
    rng = np.random.default_rng(5)
    structures = [*systems.systems().values(), systems.structure([], np.zeros((0, 3))), systems.molecule()]
    moving = SkinGraph(LIST, cutoffs, skin, CPU, narrow(cutoffs) if compiled else None)
    for _ in range(15):
        structures = walked(structures, rng, 0.06)
        assert_same(by_skin(moving, structures), by_library(structures, cutoffs))
    assert moving.builds == 15 if skin == 0 else 2 <= moving.builds <= 10


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda one: systems.replaced(one, cell=one.cell * 1.01), id="cell"),
        pytest.param(lambda one: systems.permuted(one, [1, 0, 2, 3]), id="order of types"),
        pytest.param(lambda one: systems.permuted(one, [0, 1, 2]), id="one atom less"),
        pytest.param(lambda one: systems.structure(one.type_names, one.positions, one.cell, "TFT"), id="periodicity"),
        pytest.param(lambda one: systems.moved(one, np.array([[1, 0, -2], [0] * 3, [0] * 3, [0] * 3])), id="image"),
    ],
)
def test_after_a_change(change: Callable[[Structure], Structure]) -> None:
    moving = SkinGraph(LIST, UNIFORM, 1.0, CPU)
    before = [systems.molecule(), systems.crystal()]
    assert_same(by_skin(moving, before), by_library(before, UNIFORM))
    after = [before[0], change(before[1])]
    assert_same(by_skin(moving, after), by_library(after, UNIFORM))
    assert moving.builds == 2
    by_skin(moving, after)
    assert moving.builds == 2


def test_the_same_numbers_of_atoms_otherwise_divided() -> None:
    moving = SkinGraph(LIST, UNIFORM, 1.0, CPU)
    two = [systems.molecule(), systems.molecule()]
    one = [
        systems.structure((two[0].type_names or ()) * 2, np.concatenate([t.positions + t.positions[0] for t in two]))
    ]
    one[0].positions[6:] += 2.0
    for structures in (two, one):
        assert_same(by_skin(moving, structures), by_library(structures, UNIFORM))


def test_one_system_from_a_tensor_that_changes_later() -> None:
    moving = SkinGraph(LIST, UNIFORM, 1.0, CPU)
    crystal = systems.crystal()
    positions = torch.tensor(crystal.positions)
    graph = moving(positions, indices(crystal), crystal.cell, crystal.pbc)
    positions += 0.3  # all atoms together, but farther than the list is good for alone
    positions[0] += 0.4
    assert_same(graph, by_library([crystal], UNIFORM))
    now = systems.replaced(crystal, positions=positions.numpy())
    assert_same(moving(positions, indices(now), now.cell, now.pbc), by_library([now], UNIFORM))
    assert moving.builds == 2


def test_without_atoms() -> None:
    nothing = systems.structure([], np.zeros((0, 3)))
    moving = SkinGraph(LIST, UNIFORM, 1.0, CPU)
    for _ in range(2):
        assert_same(by_skin(moving, [nothing, nothing]), by_library([nothing, nothing], UNIFORM))


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_not_finite(compiled: bool) -> None:
    moving = SkinGraph(LIST, UNIFORM, 1.0, CPU, narrow(UNIFORM) if compiled else None)
    crystal = systems.crystal()
    by_skin(moving, [crystal])
    positions = crystal.positions.copy()
    for value in (np.nan, np.inf):
        positions[2, 1] = value
        with pytest.raises(InputError, match="not finite"):
            by_skin(moving, [systems.replaced(crystal, positions=positions)])
        with pytest.raises(InputError, match="not finite"):
            by_skin(moving, [systems.replaced(crystal, cell=np.where(crystal.cell == 0, 0, value))])
    assert_same(by_skin(moving, [crystal]), by_library([crystal], UNIFORM))


@pytest.mark.parametrize("compiled", [False, True])
def test_an_overlap_is_named_when_it_comes(compiled: bool) -> None:
    moving = SkinGraph(LIST, UNIFORM, 4.0, CPU, narrow(UNIFORM) if compiled else None)
    molecule = systems.molecule()
    by_skin(moving, [systems.crystal(), molecule])
    positions = molecule.positions.copy()
    positions[3] = positions[0] + 1e-3
    with pytest.raises(InputError, match=r"structure 1: atoms 0 and 3 are 0\.002"):
        by_skin(moving, [systems.crystal(), systems.replaced(molecule, positions=positions)])
    assert moving.builds == 1  # within the skin


def test_bad_settings() -> None:
    lists = load_registry().neighbor_lists
    assert serves(LIST, CPU)
    assert not serves(lists["vesin"], CPU)
    with pytest.raises(InputError, match="0 Å or more"):
        SkinGraph(LIST, UNIFORM, -0.1, CPU)
    with pytest.raises(InputError, match="'vesin' does not list tensors on cpu"):
        SkinGraph(lists["vesin"], UNIFORM, 1.0, CPU)
    with pytest.raises(InputError, match="does not list tensors on meta: it is for cpu, cuda"):
        SkinGraph(LIST, UNIFORM, 1.0, torch.device("meta"))


def test_a_larger_crystal() -> None:
    atoms = bulk("H", "fcc", 4.0, cubic=True) * (3, 3, 3)
    atoms.rattle(0.1, seed=0)
    crystal = systems.structure(["H"] * len(atoms), atoms.positions, atoms.cell.array, "TTT")
    assert_same(
        by_skin(SkinGraph(LIST, np.full((3, 3), 4.5), 0.5, CPU), [crystal]), by_library([crystal], np.full((3, 3), 4.5))
    )
