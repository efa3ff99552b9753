"""Which atoms of a system the model sees, of which types, and how they are bonded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ase.data import atomic_numbers
from openmm import app

from nequip_core.engines.ase import AMBIGUOUS, UNKNOWN, type_table
from nequip_core.structure import Ints, TypeMap
from nequip_openmm.errors import OpenMMError

Atoms: TypeAlias = "app.Topology | Sequence[str]"
"""A topology, or the element of every particle."""

Types = Mapping[str, str] | Sequence[str] | None
"""Element -> type name where a model has several types of one; or the type of every atom of the region."""


@dataclass(frozen=True, eq=False)
class Region:
    """The atoms of the model.

    Attributes:
        indices: of the particles; None: all, in their order.
        types: [n] index of each one's type.
        bonds: pairs of numbers within the region.
        periodic: whether the topology has a box; None: not known.
    """

    indices: tuple[int, ...] | None
    types: Ints
    bonds: tuple[tuple[int, int], ...]
    periodic: bool | None


def region(of: Atoms, type_map: TypeMap, *, atoms: Iterable[int] | None = None, types: Types = None) -> Region:
    """The atoms of the model.

    Args:
        of: all particles of the system; those without an element (virtual sites) are not seen by the model.
        type_map: the model's.
        atoms: indices of the particles; None: all that have an element.
        types: see `Types`.

    Raises:
        OpenMMError: an element or type that the model does not know, an index that is not there, a virtual site.
    """
    topology = of if isinstance(of, app.Topology) else None
    symbols = _symbols(of)
    chosen = _chosen(symbols, atoms)
    number = {particle: n for n, particle in enumerate(chosen)}
    pairs = ((bond[0].index, bond[1].index) for bond in topology.bonds()) if topology else ()
    return Region(
        indices=None if chosen == list(range(len(symbols))) else tuple(chosen),
        types=_types([symbols[particle] or "" for particle in chosen], type_map, types),
        bonds=tuple((number[i], number[j]) for i, j in pairs if i in number and j in number),
        periodic=None if topology is None else topology.getPeriodicBoxVectors() is not None,
    )


def _symbols(of: Any) -> list[str | None]:
    if isinstance(of, app.Topology):
        return [None if atom.element is None else atom.element.symbol for atom in of.atoms()]
    if isinstance(of, str):
        raise OpenMMError(f"Expected a topology or a list of elements, received the text {of!r}.")
    return list(of)


def _chosen(symbols: Sequence[str | None], atoms: Iterable[int] | None) -> list[int]:
    if atoms is None:
        chosen = [particle for particle, symbol in enumerate(symbols) if symbol is not None]
    else:
        chosen = [int(particle) for particle in atoms]
        if len(set(chosen)) != len(chosen):
            raise OpenMMError("An atom is named twice among the atoms of the model. Name each once.")
        if chosen and not 0 <= min(chosen) <= max(chosen) < len(symbols):
            raise OpenMMError(
                f"Atoms {min(chosen)} to {max(chosen)} are asked for; the system has {len(symbols)}, numbered from 0."
            )
        for particle in chosen:
            if symbols[particle] is None:
                raise OpenMMError(
                    f"Particle {particle} has no element: a virtual site or an extra point, which the model can not "
                    "see. Leave it out of the atoms of the model."
                )
    if not chosen:
        raise OpenMMError("No atom is left for the model. Expected at least one atom with an element.")
    return chosen


def _types(symbols: Sequence[str], type_map: TypeMap, types: Types) -> Ints:
    """[n] index of each atom's type."""
    if types is not None and not isinstance(types, Mapping):
        return _named_types(symbols, type_map, types)
    strange = sorted({symbol for symbol in symbols if symbol not in atomic_numbers})
    if strange:
        raise OpenMMError(f"{', '.join(strange)} is no element. Expected element symbols such as H, C, O.")
    indices: Ints = type_table(type_map, types or {})[[atomic_numbers[symbol] for symbol in symbols]]
    if (indices == UNKNOWN).any():
        unknown = sorted({symbols[n] for n in np.flatnonzero(indices == UNKNOWN)})
        raise OpenMMError(
            f"The system holds {', '.join(unknown)}, which the model does not know. Its types are "
            f"{', '.join(type_map.names)}. Use a model that was trained on all elements, or give it fewer atoms."
        )
    if (indices == AMBIGUOUS).any():
        element = symbols[int(np.flatnonzero(indices == AMBIGUOUS)[0])]
        several = [name for name, of in zip(type_map.names, type_map.elements, strict=True) if of == element]
        raise OpenMMError(
            f"The model has several types of {element}: {', '.join(several)}. Say which the atoms are: "
            f"types={{{element!r}: {several[0]!r}}}, or the type of every atom."
        )
    return indices


def _named_types(symbols: Sequence[str], type_map: TypeMap, names: Sequence[str]) -> Ints:
    if len(names) != len(symbols):
        raise OpenMMError(f"types names {len(names)} atoms; the model sees {len(symbols)}.")
    element = dict(zip(type_map.names, type_map.elements, strict=True))
    for name, symbol in zip(names, symbols, strict=True):
        if element.get(name) != symbol:
            raise OpenMMError(
                f"types: {symbol!r} can not be {name!r}. The model's types and their elements are "
                f"{', '.join(f'{n} ({e})' for n, e in element.items())}."
            )
    return np.array([type_map.names.index(name) for name in names], dtype=np.int64)


def parents(atoms: int, bonds: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """For each atom one that it is bonded to, on the way to the first atom of its molecule; those follow atom 0.

    Args:
        atoms: how many.
        bonds: pairs of them.
    """
    bonded: list[list[int]] = [[] for _ in range(atoms)]
    for i, j in bonds:
        bonded[i].append(j)
        bonded[j].append(i)
    found = [-1] * atoms
    for first in range(atoms):
        if found[first] >= 0:
            continue
        found[first] = 0
        reached = [first]
        for atom in reached:
            for other in bonded[atom]:
                if found[other] < 0:
                    found[other] = atom
                    reached.append(other)
    return tuple(found)
