"""Functions of the distance: scaled by each pair's cut-off, smooth envelope, Bessel basis. All in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.kept import Kept


def polynomial_envelope(x: Float[Tensor, "edges 1"], p: int) -> Float[Tensor, "edges 1"]:
    """1 at x = 0, 0 from x = 1 on with two continuous derivatives (arXiv:2003.03123, eq. 8)."""
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    # Beyond the cut-off the clamped polynomial is exactly zero, and so are its derivatives.
    x = x.clamp(max=1.0)
    return 1 - x**p * (a - x * (b - c * x))


class ScaledDistance(nn.Module):
    """|r_ij| / r_c(t_i, t_j), with one cut-off or one for each ordered pair of types."""

    def __init__(self, pair_cutoffs: Sequence[Sequence[float]]) -> None:
        super().__init__()
        cutoffs = torch.tensor(pair_cutoffs, dtype=torch.float64)
        self.uniform = bool((cutoffs == cutoffs[0, 0]).all())
        self.register_buffer("reciprocal", 1 / cutoffs, persistent=False)
        self.reciprocal: Tensor

    def forward(self, graph: Graph, distance: Float[Tensor, "edges 1"]) -> Float[Tensor, "edges 1"]:
        """Dimensionless, 1 at the cut-off."""
        if self.uniform:
            return distance * self.reciprocal[0, 0]
        centre, neighbor = graph.types[graph.edge_index].unbind(0)
        return distance * self.reciprocal[centre, neighbor].unsqueeze(1)


class BesselBasis(nn.Module):
    """b_n(x) = sin(n pi x) / (pi x) times the envelope, n = 1 ... num (arXiv:2003.03123, eq. 7, up to a constant)."""

    def __init__(self, num: int, p: int, *, trainable: bool = False, factor: float = 1.0) -> None:
        super().__init__()
        self.p = p
        self.factor = factor
        n = torch.arange(1, num + 1, dtype=torch.float64)
        if trainable:
            self.frequencies = nn.Parameter(n)
        else:
            self.register_buffer("frequencies", n, persistent=False)
        self.wave_numbers = Kept()

    def forward(self, x: Float[Tensor, "edges 1"]) -> Float[Tensor, "edges num"]:
        """Of the scaled distance x > 0."""
        scale = polynomial_envelope(x, self.p) * (self.factor / math.pi) / x
        wave_numbers = self.wave_numbers(lambda frequencies: math.pi * frequencies, self.frequencies)
        return torch.sin(x * wave_numbers) * scale
