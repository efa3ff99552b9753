"""Functions of the distance: scaled by each pair's cut-off, smooth envelope, Bessel basis. All in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.kept import Kept
from nequip_core.ops.promises import vectors_are_differentiated_once


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
        wave_numbers = self.wave_numbers(lambda frequencies: math.pi * frequencies, self.frequencies)
        if vectors_are_differentiated_once() and not wave_numbers.requires_grad:
            basis: Tensor = _Basis.apply(x, wave_numbers, self.p, self.factor / math.pi)  # type: ignore[no-untyped-call]
            return basis
        return torch.sin(x * wave_numbers) * (polynomial_envelope(x, self.p) * (self.factor / math.pi) / x)


class _Basis(torch.autograd.Function):
    """The basis in a potential, see `nequip_core.nn.directions`: less than half of autograd's operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wave_numbers: Tensor, p: int, factor: float) -> Tensor:
        wave_numbers = wave_numbers.to(x.dtype)  # trained ones have the model's
        phase = x * wave_numbers
        sine = torch.sin(phase)
        scale = polynomial_envelope(x, p) * factor / x
        ctx.save_for_backward(x.detach(), wave_numbers, phase, sine, scale)
        ctx.p, ctx.factor, ctx.differentiated = p, factor, False
        return sine * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.differentiated:
            return (None,) * 4
        ctx.differentiated = True
        x, wave_numbers, phase, sine, scale = ctx.saved_tensors
        p = ctx.p
        # The envelope's derivative is -p (p + 1) (p + 2) / 2 x^(p - 1) (1 - x)^2.
        inside = x.clamp(max=1.0)
        steepness = ctx.factor * p * (p + 1) * (p + 2) / 2
        of_scale = torch.addcmul(scale, inside ** (p - 1), (1 - inside).square(), value=steepness) / -x
        of_x = (grad * torch.cos(phase)) @ wave_numbers.unsqueeze(1) * scale
        return torch.addcmul(of_x, (grad * sine).sum(1, keepdim=True), of_scale), None, None, None
