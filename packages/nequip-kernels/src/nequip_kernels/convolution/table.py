"""The couplings of one convolution as a list of numbers, and the text that stands for it in an operator's arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from nequip_core.o3 import Irrep, Irreps
from nequip_core.ops.contracts import ConvolutionSpec
from nequip_core.ops.reference import nonzeros


class Term(NamedTuple):
    """One non-zero of a path: ``out[k] += value * h[i] * harmonics[j]``; i and k count from the irreps' first ones."""

    i: int
    j: int
    k: int
    value: float


class Route(NamedTuple):
    """A path and where it finds and leaves its numbers.

    Attributes:
        terms: of the path.
        weights: place of its weights in an edge's row.
        out: place of its first component and channel in an atom's row of results.
        stride: from one of its components to the next.
        components: of its result.
    """

    terms: tuple[Term, ...]
    weights: int
    out: int
    stride: int
    components: int


class Group(NamedTuple):
    """The paths from one irrep of the features, which one kernel takes together.

    Attributes:
        channels: of the irrep.
        h: place of its first component and channel in an atom's row of features.
        components: of the irrep.
        routes: its paths.
    """

    channels: int
    h: int
    components: int
    routes: tuple[Route, ...]

    @property
    def terms(self) -> int:
        """Of all paths."""
        return sum(len(route.terms) for route in self.routes)


@dataclass(frozen=True)
class Table:
    """What the generated kernels of a convolution are made of."""

    spec: ConvolutionSpec

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """One for each irrep of the features that has a path."""
        return _groups(self.spec)

    @property
    def components(self) -> int:
        """Of the harmonics."""
        return (self.spec.l_max + 1) ** 2

    @property
    def dim_in(self) -> int:
        """Numbers of an atom's features."""
        return self.spec.irreps_in.dim

    @property
    def dim_out(self) -> int:
        """Numbers of an atom's result."""
        return self.spec.irreps_out.dim


@cache
def _groups(spec: ConvolutionSpec) -> tuple[Group, ...]:
    """Made once, when a kernel is made: where torch traces, the numbers of a table can not be read."""
    out_starts, out_channels = _starts(spec.irreps_out), spec.irreps_out.channels
    in_starts, in_channels = _starts(spec.irreps_in), spec.irreps_in.channels
    columns = dict.fromkeys(out_channels, 0)
    routes: dict[Irrep, list[Route]] = {}
    weights = 0
    for path in spec.paths:
        terms = tuple(Term(m1, path.l_edge**2 + m2, m3, value) for m1, m2, m3, value in nonzeros(path))
        first = out_starts[path.irrep_out] + columns[path.irrep_out]
        route = Route(terms, weights, first, out_channels[path.irrep_out], path.irrep_out.dim)
        routes.setdefault(path.irrep_in, []).append(route)
        weights += in_channels[path.irrep_in]
        columns[path.irrep_out] += in_channels[path.irrep_in]
    return tuple(
        Group(in_channels[irrep], in_starts[irrep], irrep.dim, tuple(found)) for irrep, found in routes.items()
    )


def _starts(irreps: Irreps) -> dict[Irrep, int]:
    """The first number of each block in a row."""
    starts, total = {}, 0
    for irrep, channels in irreps:
        starts[irrep] = total
        total += irrep.dim * channels
    return starts


def write_spec(spec: ConvolutionSpec) -> dict[str, object]:
    """As JSON holds it."""
    return {
        "in": [[*irrep, channels] for irrep, channels in spec.irreps_in],
        "targets": [list(irrep) for irrep in spec.targets],
        "l_max": spec.l_max,
        "parity": spec.parity,
    }


@cache
def read_spec(text: str) -> ConvolutionSpec:
    """The inverse of `write_spec`, from JSON."""
    about = json.loads(text)["spec"]
    return ConvolutionSpec(
        irreps_in=Irreps((Irrep(l_, p), channels) for l_, p, channels in about["in"]),
        l_max=about["l_max"],
        parity=about["parity"],
        targets=tuple(Irrep(*irrep) for irrep in about["targets"]),
    )
