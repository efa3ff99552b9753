"""The couplings of one contraction as a list of numbers, and the text that stands for it in an operator's arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from nequip_core.o3 import Irrep
from nequip_core.ops.contracts import ContractionSpec
from nequip_core.ops.reference import nonzeros


class Term(NamedTuple):
    """One non-zero: ``out[k] += path_weights[path] * value * features[i] * environment[j]``."""

    path: int
    i: int
    j: int
    k: int
    value: float


@dataclass(frozen=True)
class Table:
    """What a generated kernel is made of.

    Attributes:
        spec: of the contraction.
        degrees: environment weights of an edge and channel: ``l_max + 1``, or 1 for all degrees.
    """

    spec: ContractionSpec
    degrees: int

    @property
    def terms(self) -> tuple[Term, ...]:
        """All non-zeros, path after path; 2 l3 + 1 under the root is part of the values."""
        return _terms(self.spec)

    @property
    def paths(self) -> int:
        """Path weights of a channel."""
        return len(self.spec.paths)

    @property
    def components(self) -> int:
        """Of the harmonics and the environment."""
        return (self.spec.l_max + 1) ** 2

    @property
    def stored_in(self) -> int:
        """Numbers that are stored for the features of an edge and channel: components, or factors."""
        return self.spec.l_max + 1 if self.spec.factors else self.spec.dim_in

    def degree(self, j: int) -> int:
        """Which environment weight belongs to component ``j``."""
        return 0 if self.degrees == 1 else factor(j)

    def by_output(self) -> Iterator[tuple[int, list[tuple[int, list[Term]]]]]:
        """``(k, [(path, terms), ...])``: each output component with its terms, path by path."""
        for k in range(self.spec.dim_out):
            found: dict[int, list[Term]] = {}
            for term in self.terms:
                if term.k == k:
                    found.setdefault(term.path, []).append(term)
            yield k, list(found.items())


def factor(component: int) -> int:
    """The degree of a component of the harmonics, which is its factor's place."""
    return int(component**0.5)


@cache
def _terms(spec: ContractionSpec) -> tuple[Term, ...]:
    """Made once, when a kernel is made: where torch traces, the numbers of a table can not be read."""
    ins, outs = _starts(spec.irreps_in), _starts(spec.irreps_out)
    return tuple(
        Term(n, ins[path.irrep_in] + m1, path.l_edge**2 + m2, outs[path.irrep_out] + k, value)
        for n, path in enumerate(spec.paths)
        for m1, m2, k, value in nonzeros(path)
    )


def _starts(irreps: tuple[Irrep, ...]) -> dict[Irrep, int]:
    """The first component of each irrep."""
    starts, total = {}, 0
    for irrep in irreps:
        starts[irrep] = total
        total += irrep.dim
    return starts


def write_spec(spec: ContractionSpec) -> dict[str, object]:
    """As JSON holds it."""
    return {
        "in": [list(irrep) for irrep in spec.irreps_in],
        "out": [list(irrep) for irrep in spec.irreps_out],
        "l_max": spec.l_max,
        "channels": spec.channels,
        "coupled": spec.coupled,
        "factors": spec.factors,
        "scalars_apart": spec.scalars_apart,
    }


@cache
def read_spec(text: str) -> ContractionSpec:
    """The inverse of `write_spec`, from JSON."""
    return of_text(json.loads(text)["spec"])


def of_text(about: Mapping[str, Any]) -> ContractionSpec:
    """The inverse of `write_spec`."""
    return ContractionSpec(
        irreps_in=tuple(Irrep(*irrep) for irrep in about["in"]),
        irreps_out=tuple(Irrep(*irrep) for irrep in about["out"]),
        l_max=about["l_max"],
        channels=about["channels"],
        coupled=about["coupled"],
        factors=about["factors"],
        scalars_apart=about["scalars_apart"],
    )
