"""Length and spherical harmonics of edge vectors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nequip_core.o3 import SphericalHarmonics
from nequip_core.ops.promises import vectors_are_differentiated_once


class Directions(SphericalHarmonics):
    """|r| and Y(r / |r|) of vectors r.

    A potential takes the derivative in closed form: a third of the operators that autograd would call. A training step
    differentiates that by weights only: no operator of it belongs to a second derivative by the vectors.
    """

    def __init__(self, l_max: int) -> None:
        super().__init__(l_max)
        of_unit = 3**0.5 * torch.eye(3, dtype=torch.float64)
        steps = [of_unit, *(self.get_buffer(f"step_{degree}") for degree in range(2, l_max + 1))][:l_max]
        self.register_buffer("gradients", _gradients(*steps), persistent=False)
        self.gradients: Tensor

    def of(
        self, vectors: Float[Tensor, "edges 3"]
    ) -> tuple[Float[Tensor, "edges 1"], Float[Tensor, "edges components"]]:
        """Distance, and harmonics [edges, (l_max + 1)^2]."""
        if vectors_are_differentiated_once():
            result: tuple[Tensor, Tensor] = _Directions.apply(vectors, self, self.gradients)  # type: ignore[no-untyped-call]
            return result
        distance = vectors.norm(dim=1, keepdim=True)
        return distance, self(vectors / distance)


def _gradients(*steps: Float[Tensor, "pairs m"]) -> Float[Tensor, "components lower_and_3"]:
    """The gradient of all harmonics from those of lower degrees, [(l_max + 1)^2, l_max^2 3].

    That of a solid harmonic of degree l has the degree l - 1. So the table that makes Y_l of Y_{l-1} and the unit
    vector u makes it too, and u . grad Y_l = l Y_l gives the factor.
    """
    l_max = len(steps)
    table = torch.zeros((l_max + 1) ** 2, l_max**2, 3, dtype=torch.float64)
    for degree, step in enumerate(steps, start=1):
        of_degree = degree * torch.unflatten(step, 0, (2 * degree - 1, 3)).permute(2, 0, 1)
        table[degree**2 : (degree + 1) ** 2, (degree - 1) ** 2 : degree**2] = of_degree
    return table.flatten(1)


class _Directions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, harmonics: Directions, gradients: Tensor) -> tuple[Tensor, Tensor]:
        distance = vectors.norm(dim=1, keepdim=True)
        unit = vectors / distance
        values: Tensor = harmonics(unit)
        # Of what is saved detached no derivative is taken.
        ctx.save_for_backward(distance.detach(), unit, values.detach(), gradients)
        ctx.differentiated = False
        return distance, values

    @staticmethod
    def backward(ctx: Any, of_distance: Tensor, of_values: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.differentiated:
            return None, None, None
        ctx.differentiated = True
        distance, unit, values, gradients = ctx.saved_tensors
        lower = gradients.shape[1] // 3
        if lower == 0:
            return of_distance * unit, None, None
        moved = torch.unflatten(of_values @ gradients, 1, (lower, 3))
        of_unit = (moved * values[:, :lower].unsqueeze(2)).sum(1)
        # dr = |dr| u + |r| du, and du is at right angles to u.
        along = torch.addcmul((of_unit * unit).sum(1, keepdim=True), of_distance, distance, value=-1)
        return torch.addcmul(of_unit, along, unit, value=-1) / distance, None, None
