"""Structures as columns are the same structures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from nequip_core.data.frames import Frames, ranges
from nequip_core.structure import Structure


@pytest.fixture
def structures(rng: np.random.Generator, random_structure: Callable[..., Structure]) -> list[Structure]:
    made = []
    for n in range(6):
        one = random_structure(rng, n + 1, periodic=n % 2 == 0)
        names = tuple("Ow" if z == 8 else "Hw" for z in one.numbers)
        made.append(
            replace(
                one,
                energy=-1.5 * n if n != 2 else None,
                forces=rng.normal(size=(n + 1, 3)) if n != 3 else None,
                stress=rng.normal(size=(3, 3)) if n == 4 else None,
                weight=1.0 + n,
                config_type=("bulk", None, "surface")[n % 3],
                type_names=names if n % 2 else None,
                source=f"some:where.xyz frame {n}" if n else "made by hand",
            )
        )
    return made


def assert_same(one: Structure, other: Structure) -> None:
    for item in fields(Structure):
        np.testing.assert_equal(getattr(one, item.name), getattr(other, item.name), err_msg=item.name)


def test_every_field(structures: list[Structure]) -> None:
    frames = Frames.of(structures)
    assert len(frames) == 6
    for one, other in zip(frames, structures, strict=True):
        assert_same(one, other)
    assert_same(frames[-1], structures[-1])
    with pytest.raises(IndexError):
        frames[6]
    assert Frames.of(frames) is frames


def test_some_of_them(structures: list[Structure]) -> None:
    frames = Frames.of(structures).take([4, 1, 3])
    assert [one.source for one in frames] == [structures[n].source for n in (4, 1, 3)]
    assert frames.atoms.tolist() == [5, 2, 4]
    np.testing.assert_array_equal(
        frames.atom_column("positions"), np.concatenate([structures[n].positions for n in (4, 1, 3)])
    )
    assert_same(frames[1:][1], structures[3])
    assert_same(frames.take([2, 0])[0], structures[3])
    assert frames.config_types() == [structures[n].config_type for n in (4, 1, 3)]
    assert len(frames.take([])) == 0


def test_types_and_who_has_them(structures: list[Structure]) -> None:
    frames = Frames.of(structures)
    found = frames.types()
    assert {(name, symbol) for name, symbol in found} == {("Hw", "H"), ("Ow", "O"), ("H", "H"), ("O", "O")}
    for (name, symbol), number in found.items():
        one = structures[number]
        assert (name, symbol) in zip(one.type_names or one.symbols, one.symbols, strict=True)


def test_hashes(structures: list[Structure]) -> None:
    frames = Frames.of(structures)
    again = Frames.of(replace(one, source="elsewhere:0") for one in structures)
    assert (frames.geometry_hash(), frames.content_hash()) == (again.geometry_hash(), again.content_hash())
    moved = [replace(one, positions=one.positions + 1e-9) for one in structures]
    assert Frames.of(moved).geometry_hash() != frames.geometry_hash()
    relabelled = Frames.of([replace(structures[0], energy=7.0), *structures[1:]])
    assert relabelled.geometry_hash() == frames.geometry_hash()
    assert relabelled.content_hash() != frames.content_hash()
    assert frames.take([1, 0]).geometry_hash() != frames.take([0, 1]).geometry_hash()


def test_no_structures() -> None:
    frames = Frames.of([])
    assert list(frames) == []
    assert frames.types() == {}


def test_ranges() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
