"""Structures, what is refused about them, and types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from nequip_core.errors import InputError
from nequip_core.structure import Structure, TypeMap


def make(**fields: Any) -> Structure:
    water = Structure(
        positions=np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]),
        numbers=np.array([8, 1, 1]),
        cell=np.diag([5.0, 6.0, 7.0]),
        pbc=np.full(3, True),
        source="water.xyz frame 4",
    )
    return replace(water, **fields)


def test_from_ase_copies_and_comes_back() -> None:
    atoms = bulk("Si", cubic=True)
    structure = Structure.from_ase(atoms, source="si")
    positions = atoms.positions.copy()
    structure.positions[0] += 1
    np.testing.assert_array_equal(atoms.positions, positions)
    structure.positions[0] -= 1
    back = structure.to_ase()
    np.testing.assert_allclose(back.positions, positions)
    np.testing.assert_array_equal(back.cell.array, atoms.cell.array)
    np.testing.assert_array_equal(back.numbers, atoms.numbers)
    assert back.pbc.all()
    assert len(structure) == 8


def test_volume_needs_three_periodic_directions() -> None:
    assert make().volume == pytest.approx(210.0)
    assert make(pbc=np.array([True, True, False])).volume is None
    assert Structure.from_ase(molecule("H2O")).volume is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pbc": np.full(3, False), "cell": np.zeros((3, 3))},
        {"pbc": np.array([True, False, True]), "cell": np.diag([5.0, 0.0, 7.0])},
        {"positions": make().positions + 100.0},
        {"energy": -3.0, "forces": np.zeros((3, 3)), "stress": np.zeros((3, 3)), "weight": 0.0},
    ],
)
def test_what_is_right(fields: dict[str, Any]) -> None:
    make(**fields).validate()


def test_no_atoms() -> None:
    make(positions=np.zeros((0, 3)), numbers=np.zeros(0, dtype=np.int64)).validate()


NAN = np.full((3, 3), np.nan)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": NAN}, "positions"),
        ({"positions": NAN + np.inf}, "positions"),
        ({"cell": NAN}, "cell"),
        ({"energy": float("nan")}, "energy"),
        ({"energy": float("inf")}, "energy"),
        ({"forces": NAN}, "forces"),
        ({"stress": NAN}, "stress"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": -1.0}, "weight"),
        ({"numbers": np.array([8, 0, 1])}, "0.* is no element"),
        ({"numbers": np.array([8, 1, 119])}, "119.* is no element"),
        ({"cell": np.diag([5.0, 0.0, 7.0])}, "does not span"),
        ({"cell": np.array([[5.0, 0, 0], [10.0, 0, 0], [0, 0, 5.0]])}, "does not span"),
        ({"cell": np.diag([5.0, 6.0, 7.0])[[1, 0, 2]]}, "volume is negative"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"water\.xyz frame 4: .*{message}"):
        make(**fields).validate()


def test_elements_to_indices() -> None:
    np.testing.assert_array_equal(TypeMap(("H", "O"), ("H", "O")).indices(make()), [1, 0, 0])


def test_the_last_element_is_one() -> None:
    oganesson = Structure.from_ase(Atoms("Og"))
    oganesson.validate()
    np.testing.assert_array_equal(TypeMap(("H", "Og"), ("H", "Og")).indices(oganesson), [1])


def test_named_types_to_indices() -> None:
    types = TypeMap(("Hw", "Ow", "O"), ("H", "O", "O"))
    np.testing.assert_array_equal(types.indices(make(type_names=("Ow", "Hw", "Hw"))), [1, 0, 0])


def test_an_unknown_element_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"water\.xyz frame 4: .*\bO\b.*H, Si"):
        TypeMap(("H", "Si"), ("H", "Si")).indices(make())


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(InputError, match=r"water\.xyz frame 4: .*Hx"):
        TypeMap(("Hw", "Ow"), ("H", "O")).indices(make(type_names=("Ow", "Hw", "Hx")))


def test_a_type_of_another_element_than_the_atom() -> None:
    water = make(source="w.xyz frame 3", type_names=("Ow", "Ow", "Hw"))
    assert TypeMap(("Hw", "Ow"), ("H", "O")).indices(replace(water, type_names=("Ow", "Hw", "Hw"))).tolist() == [
        1,
        0,
        0,
    ]
    with pytest.raises(InputError, match=r"w\.xyz frame 3: atom 1 is H and of type Ow, which the model declares as O"):
        TypeMap(("Hw", "Ow"), ("H", "O")).indices(water)
