"""The one door to e3nn: irreducible representations of O(3), Wigner 3j tables, spherical harmonics.

Conventions are e3nn's: real spherical harmonics in "component" normalisation, |Y_l(r)|^2 = 2l + 1, of which Y_1 is
sqrt(3) (x, y, z); Wigner 3j tables of unit Frobenius norm.

Features live in flat rows, one block [2l + 1, channels] per irrep with the channel fastest, so that a contraction over
components reads consecutive channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Irrep(NamedTuple):
    """One irreducible representation of O(3): degree l and parity p (1 even, -1 odd)."""

    l: int  # noqa: E741 (the field's name for the degree)
    p: int

    @property
    def dim(self) -> int:
        """2l + 1."""
        return 2 * self.l + 1

    def __str__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"


SCALAR = Irrep(0, 1)

Blocks = dict[Irrep, Tensor]
"""Features by irrep, [rows, 2l + 1, channels] each."""


class Irreps:
    """The layout of feature rows: blocks of (irrep, channels), each irrep at most once, in the order of storage."""

    def __init__(self, blocks: Iterable[tuple[Irrep, int]]) -> None:
        self.blocks = tuple((irrep, channels) for irrep, channels in blocks if channels > 0)
        self.channels = dict(self.blocks)
        if len(self.channels) != len(self.blocks):
            raise ValueError(f"An irrep occurs twice in {self}.")
        self.sizes = tuple(irrep.dim * channels for irrep, channels in self.blocks)
        self.dim = sum(self.sizes)

    def __iter__(self) -> Iterator[tuple[Irrep, int]]:
        return iter(self.blocks)

    def __contains__(self, irrep: object) -> bool:
        return irrep in self.channels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Irreps) and self.blocks == other.blocks

    def __hash__(self) -> int:
        return hash(self.blocks)

    def __str__(self) -> str:
        return "+".join(f"{channels}x{irrep}" for irrep, channels in self.blocks)

    __repr__ = __str__

    def split(self, x: Float[Tensor, "rows dim"]) -> Blocks:
        """Views of the blocks, [rows, 2l + 1, channels] each."""
        parts = x.split_with_sizes(self.sizes, dim=-1)
        return {
            irrep: torch.unflatten(part, -1, (irrep.dim, channels))
            for (irrep, channels), part in zip(self.blocks, parts, strict=True)
        }

    def join(self, parts: Blocks) -> Float[Tensor, "rows dim"]:
        """Rows from blocks; the inverse of `split`."""
        flat = [parts[irrep].flatten(1) for irrep, _ in self.blocks]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> Float[Tensor, "m1 m2 m3"]:
    """Wigner 3j symbols in the real basis, float64, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], unit norm."""
    from e3nn import o3

    table: Tensor = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
    return table


@cache
def _harmonic_step(degree: int) -> Float[Tensor, "pairs m"]:
    """The table that makes Y_l from the products of Y_{l-1} and the unit vector, [(2l - 1) 3, 2l + 1]."""
    from e3nn import o3

    r = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    lower = o3.spherical_harmonics(degree - 1, r, normalize=False, normalization="component")
    exact = o3.spherical_harmonics(degree, r, normalize=False, normalization="component")
    product = torch.einsum("i,j,ijk->k", lower, r, wigner_3j(degree - 1, 1, degree))
    factor = float((exact @ product) / (product @ product))
    return (factor * wigner_3j(degree - 1, 1, degree)).reshape(-1, 2 * degree + 1)


class SphericalHarmonics(nn.Module):
    """Y_0 ... Y_l_max of unit vectors, by the recursion Y_l ~ Y_{l-1} (x) r contracted with the Wigner 3j table.

    A matrix product for each degree: few operators forward and backward, unlike expanded polynomials.
    """

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        for degree in range(2, l_max + 1):
            self.register_buffer(f"step_{degree}", _harmonic_step(degree).clone(), persistent=False)

    def forward(self, unit: Float[Tensor, "edges 3"]) -> Float[Tensor, "edges components"]:
        """[edges, (l_max + 1)^2] in the dtype of ``unit``."""
        harmonics = [torch.ones_like(unit[:, :1])]
        if self.l_max > 0:
            harmonics.append(3**0.5 * unit)
        for degree in range(2, self.l_max + 1):
            pairs = (harmonics[-1].unsqueeze(2) * unit.unsqueeze(1)).flatten(1)
            harmonics.append(pairs @ self.get_buffer(f"step_{degree}"))
        return torch.cat(harmonics, dim=-1)


def couplings(in_irrep: Irrep, l_edge: int, edge_parity: int, outputs: Sequence[Irrep] | Irreps) -> list[Irrep]:
    """Those of ``outputs`` that occur in ``in_irrep`` (x) (l_edge, edge_parity), in the order of ``outputs``."""
    names = [item if isinstance(item, Irrep) else item[0] for item in outputs]
    parity = in_irrep.p * edge_parity
    return [out for out in names if out.p == parity and abs(in_irrep.l - l_edge) <= out.l <= in_irrep.l + l_edge]
