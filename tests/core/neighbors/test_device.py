"""The list of tensors: batches, pieces, every way to cut a lattice, and cells that nobody means.

What it shares with the libraries' lists is tested in tests/core/test_neighbors.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from nequip_core.errors import InputError
from nequip_core.neighbors import Pairs, TensorPairs, device, make_device, make_vesin
from nequip_core.neighbors.device import FixedList, FixedPairs
from nequip_core.plugins.manager import load_registry
from nequip_core.structure import Structure
from nequip_core.testing import systems

REACH = 3.0


def mixed() -> list[Structure]:
    """Every kind of structure, one without atoms between them, and a large one of each periodicity."""
    rng = np.random.default_rng(3)
    cloud = rng.uniform(0, 14, size=(270, 3))
    large = [
        systems.structure(["H"] * 270, cloud, np.diag([14.0, 15.0, 13.0]) + rng.normal(scale=0.8, size=(3, 3)), pbc)
        for pbc in ("TTT", "TFT", "FFF")
    ]
    return [*systems.systems().values(), systems.structure([], np.zeros((0, 3))), *large, systems.atom("O")]


def together(structures: Sequence[Structure], reach: float = REACH) -> TensorPairs:
    return make_device(reach).pairs(
        torch.from_numpy(np.concatenate([one.positions for one in structures])),
        np.stack([one.cell for one in structures]),
        np.stack([one.pbc for one in structures]),
        np.array([len(one) for one in structures]),
    )


def apart(structures: Sequence[Structure], reach: float = REACH) -> TensorPairs:
    """The same by a library of the CPU, one after the other, sorted."""
    columns: list[list[np.ndarray]] = [[], [], []]
    first = 0
    for one in structures:
        centre, neighbor, shift = make_vesin(reach)(one.positions, one.cell, one.pbc)
        order = np.lexsort((*shift.T[::-1], neighbor, centre))
        for column, array in zip(columns, (centre + first, neighbor + first, shift.astype(float)), strict=True):
            column.append(array[order])
        first += len(one)
    return TensorPairs(*(torch.from_numpy(np.concatenate(column)) for column in columns))


def assert_same(received: TensorPairs, expected: TensorPairs) -> None:
    for name, got, want in zip(TensorPairs._fields, received, expected, strict=True):
        assert got.dtype == want.dtype, name
        assert torch.equal(got, want), name


@pytest.mark.parametrize("fineness", [(0,), (1,), (2,), device.FINENESS])
def test_a_batch_is_its_structures_in_order(monkeypatch: pytest.MonkeyPatch, fineness: tuple[int, ...]) -> None:
    monkeypatch.setattr(device, "FINENESS", fineness)
    structures = mixed()
    expected = apart(structures)
    assert len(expected.centre) > 5000
    assert_same(together(structures), expected)


@pytest.mark.parametrize(("searches", "candidates"), [(1, 1 << 20), (100, 1 << 20), (1 << 20, 1), (50, 30)])
def test_in_pieces(monkeypatch: pytest.MonkeyPatch, searches: int, candidates: int) -> None:
    monkeypatch.setattr(device, "SEARCHES_AT_ONCE", searches)
    monkeypatch.setattr(device, "CANDIDATES_AT_ONCE", {"cpu": candidates})
    structures = list(systems.systems().values())
    assert_same(together(structures), apart(structures))


def fixed(structures: Sequence[Structure], reach: float = REACH) -> FixedList:
    made = make_device(reach).fixed(
        torch.from_numpy(np.concatenate([one.positions for one in structures])),
        np.stack([one.cell for one in structures]),
        np.stack([one.pbc for one in structures]),
        np.array([len(one) for one in structures]),
    )
    assert made is not None
    return made


def assert_fixed(received: FixedPairs, expected: TensorPairs, atoms: int) -> None:
    assert received.lacking.tolist() == [0]
    number = int(received.number)
    assert_same(TensorPairs(*(column[:number] for column in received[:3])), expected)
    assert (torch.stack([received.centre, received.neighbor])[:, number:] == atoms).all()


@pytest.mark.parametrize("fineness", [(1,), (2,), device.FINENESS])
def test_a_fixed_list_is_the_list_wherever_atoms_go(monkeypatch: pytest.MonkeyPatch, fineness: tuple[int, ...]) -> None:
    monkeypatch.setattr(device, "FINENESS", fineness)
    rng = np.random.default_rng(1)
    structures = mixed()
    listed = fixed(structures)
    lengths = set()
    for step in (0.0, 0.3, 0.3, 2.0):  # the last one takes atoms out of their cells
        moved = [rng.uniform(-step, step, size=one.positions.shape) for one in structures]
        structures = [
            systems.replaced(one, positions=one.positions + by) for one, by in zip(structures, moved, strict=True)
        ]
        positions = np.concatenate([one.positions for one in structures])
        found = listed(torch.from_numpy(positions))
        lengths.add(len(found.centre))
        assert_fixed(found, apart(structures), len(positions))
    assert len(lengths) == 1


def test_a_fixed_list_in_other_cells() -> None:
    structures = mixed()
    listed = fixed(structures)
    positions = torch.from_numpy(np.concatenate([one.positions for one in structures]))
    lengths, rng = set(), np.random.default_rng(4)
    for _ in range(4):
        structures = [systems.replaced(one, cell=one.cell + rng.normal(scale=0.01, size=(3, 3))) for one in structures]
        assert listed.move_to(np.stack([one.cell for one in structures]))
        found = listed(positions)
        lengths.add(len(found.centre))
        assert_fixed(found, apart(structures), len(positions))
    assert len(lengths) == 1


def test_a_fixed_list_is_for_cells_that_are_a_little_narrower() -> None:
    """Boxes that are as wide as they must be at least, of a cell that shrinks."""
    cell = np.diag([8.0001, 8.0001, 12.0001])
    cloud = systems.structure(["H"] * 300, np.random.default_rng(0).uniform(0, 8, (300, 3)), cell, "TTT")
    listed = fixed([cloud], 4.0)
    assert (listed._plan.cut > 1).all()
    assert listed.move_to(0.98 * cell[None])
    found = listed(torch.from_numpy(0.98 * cloud.positions))
    narrower = systems.replaced(cloud, positions=0.98 * cloud.positions, cell=0.98 * cell)
    assert_fixed(found, apart([narrower], 4.0), 300)


def test_cells_that_want_another_fixed_list() -> None:
    """Atoms would have to look farther."""
    narrow, wide = np.diag([5.0, 8.0, 8.0]), np.diag([8.0, 5.0, 8.0])
    rng = np.random.default_rng(0)
    one, other = (systems.structure(["H"] * 40, rng.uniform(0, 8, (40, 3)), cell, "TTT") for cell in (narrow, wide))
    listed = fixed([one, other], 4.0)
    assert not listed.move_to(np.stack([0.5 * narrow, wide]))
    assert not listed.move_to(np.stack([narrow, 0.5 * wide]))
    assert listed.move_to(np.stack([0.98 * narrow, 2 * wide]))
    assert listed.move_to(np.stack([narrow, wide]))
    with pytest.raises(InputError, match="no volume"):
        listed.move_to(np.stack([narrow, 0 * wide]))
    positions = torch.from_numpy(np.concatenate([one.positions, other.positions]))
    assert_fixed(listed(positions), apart([one, other], 4.0), 80)


def test_what_a_fixed_list_has_no_room_for_is_told() -> None:
    rng = np.random.default_rng(0)
    cloud = systems.structure(["H"] * 400, rng.uniform(0, 24, size=(400, 3)))
    listed = fixed([cloud])
    half = systems.replaced(cloud, positions=0.5 * cloud.positions)
    assert len(apart([half]).centre) > 1.1 * len(apart([cloud]).centre) + 512
    assert int(listed(torch.from_numpy(half.positions)).lacking) > 0
    assert_fixed(listed(torch.from_numpy(cloud.positions)), apart([cloud]), 400)
    broken = torch.from_numpy(cloud.positions.copy())
    broken[7] = torch.nan
    listed(broken)  # touches no other memory
    listed._half = len(apart([cloud]).centre) // 2 - 3
    assert listed(torch.from_numpy(cloud.positions)).lacking.tolist() == [3]


@pytest.mark.parametrize(("name", "most"), [("SEARCHES_AT_ONCE", 1), ("CANDIDATES_AT_ONCE", {"cpu": 1})])
def test_too_much_for_a_fixed_list(monkeypatch: pytest.MonkeyPatch, name: str, most: int | dict[str, int]) -> None:
    monkeypatch.setattr(device, name, most)
    one = systems.crystal()
    x = torch.from_numpy(one.positions)
    assert make_device(REACH).fixed(x, one.cell[None], one.pbc[None], np.array([len(one)])) is None


def test_no_fixed_list_without_atoms() -> None:
    assert make_device(REACH).fixed(torch.zeros(0, 3), np.eye(3)[None], np.full((1, 3), True), np.array([0])) is None


def test_every_way_to_cut_a_lattice_is_taken() -> None:
    """A small molecule is one box, a dense crystal is cut finely: the cost decides."""
    small, large = Structure.from_ase(molecule("H2O")), Structure.from_ase(bulk("Cu", cubic=True) * (8, 8, 8))
    boxes = {}
    for name, one in (("small", small), ("large", large)):
        plan = device._plan(one.cell[None], one.pbc[None], np.array([len(one)]), 6.0, torch.device("cpu"))
        boxes[name] = plan.boxes[0].tolist()
    assert boxes["small"] == [1, 1, 1]
    assert boxes["large"] == [9, 9, 9]  # of 28.9 Å, in pieces of at least 3 Å


def test_atoms_far_apart_and_far_away() -> None:
    """Without a cell: no table of boxes, whose numbers begin anew after FOLD."""
    fold = device.FOLD * REACH
    positions = np.array(
        [[0, 0, 0], [1.0, 0, 0], [fold, 0, 0], [fold + 1, 1, 0], [1e9, -1e9, 1e7], [1e9, -1e9, 1e7 + 1]]
    )
    expected = [[0, 1], [1, 0], [2, 3], [3, 2], [4, 5], [5, 4]]
    for repeats in (1, 100):  # one box; and enough atoms for many
        copies = np.concatenate([positions + np.array([0, 0, 40.0 * n]) for n in range(repeats)])
        pairs = make_device(REACH)(copies, np.zeros((3, 3)), np.full(3, False))
        assert np.stack(pairs[:2], axis=1)[:6].tolist() == expected
        assert len(pairs.centre) == 6 * repeats


def test_an_atom_thousands_of_cells_away() -> None:
    crystal = systems.crystal()
    moved = systems.moved(crystal, np.array([[0, 0, 0], [5000, -3000, 0], [0, 0, 1], [0, -7000, 2]]))
    expected, received = apart([crystal]), together([moved])
    for name in ("centre", "neighbor"):
        assert torch.equal(getattr(received, name), getattr(expected, name))
    vectors = [
        torch.from_numpy(one.positions)[pairs.neighbor]
        - torch.from_numpy(one.positions)[pairs.centre]
        + pairs.shift @ torch.from_numpy(one.cell)
        for one, pairs in ((crystal, expected), (moved, received))
    ]
    torch.testing.assert_close(*vectors, rtol=0, atol=1e-10)


def test_pairs_at_the_cutoff() -> None:
    """Excluded, and what is just within is not lost, though it lies on borders of boxes."""
    positions = np.array([[0.0, 0, 0], [3.0, 0, 0], [6.0, 0, 0], [9.0, 0, 0]])
    system = positions, np.diag([12.0, 9.0, 9.0]), np.full(3, True)
    assert len(make_device(3.0)(*system).centre) == 0
    assert len(make_device(np.nextafter(3.0, 4.0))(*system).centre) == 8


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        (np.zeros((3, 3)), (True, True, True), "no volume"),
        (np.array([[3.0, 0, 0], [6.0, 0, 0], [0, 0, 3.0]]), (True, True, False), "no volume"),
        (np.diag([1e-3, 1e-3, 5.0]), (True, True, True), "images within 3 Å"),
    ],
)
def test_cells_that_nobody_means(cell: np.ndarray, pbc: tuple[bool, ...], message: str) -> None:
    good = systems.crystal()
    with pytest.raises(InputError, match=f"structure 1.*{message}"):
        together([good, Structure(positions=np.zeros((1, 3)), numbers=np.ones(1, int), cell=cell, pbc=np.array(pbc))])


def test_it_is_in_the_registry() -> None:
    entry = load_registry().neighbor_lists["device"]
    assert entry.batched
    assert entry.devices == {"cpu", "cuda"}
    crystal = systems.crystal()
    pairs = entry.make.load()(REACH - 0.5, 0.5)(crystal.positions, crystal.cell, crystal.pbc)
    assert isinstance(pairs, Pairs)
    assert len(pairs.centre) == len(apart([crystal]).centre)
