"""Linear maps that mix channels and leave components alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.o3 import Blocks, Irreps
from nequip_core.ops.kept import Kept


class EquivariantLinear(nn.Module):
    """For each irrep in both layouts, y = x W / sqrt(fan_in) on the channels; W ~ N(0, 1), no bias."""

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps) -> None:
        super().__init__()
        self.irreps_in = irreps_in
        self.irreps_out = Irreps((irrep, channels) for irrep, channels in irreps_out if irrep in irreps_in)
        self.weights = nn.ParameterDict(
            {str(irrep): torch.randn(irreps_in.channels[irrep], channels) for irrep, channels in self.irreps_out}
        )
        self.scaled = Kept()

    def forward(self, x: Blocks) -> Blocks:
        """Blocks [rows, components, channels] of ``irreps_in`` to those of ``irreps_out``."""
        weights = self.scaled(self._scale, *self.weights.values())
        return {irrep: _mixed(x[irrep], weight) for (irrep, _), weight in zip(self.irreps_out, weights, strict=True)}

    def _scale(self, *weights: Tensor) -> list[Tensor]:
        return [
            self.irreps_in.channels[irrep] ** -0.5 * weight
            for (irrep, _), weight in zip(self.irreps_out, weights, strict=True)
        ]


class SelfConnection(nn.Module):
    """The channels of an atom mixed by weights that depend on its type: y = x (x) a W / sqrt(fan_in), W ~ N(0, 1).

    a [types, dim] is the type embedding (arXiv:2101.03164, fig. 1d). With few types the embedding is contracted with W
    once for each type; otherwise x (x) a is formed for each atom: whichever has fewer operations.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, num_types: int, embedding_dim: int) -> None:
        super().__init__()
        self.irreps_in = irreps_in
        self.irreps_out = Irreps((irrep, channels) for irrep, channels in irreps_out if irrep in irreps_in)
        self.by_type = num_types <= embedding_dim
        self.num_types = num_types
        self.embedding_dim = embedding_dim
        self.weights = nn.ParameterDict(
            {
                str(irrep): torch.randn(irreps_in.channels[irrep], embedding_dim, channels)
                for irrep, channels in self.irreps_out
            }
        )
        self.scaled = Kept()

    def forward(self, x: Blocks, embedding: Float[Tensor, "types dim"], types: Float[Tensor, "atoms types"]) -> Blocks:
        """Blocks [atoms, components, channels] of ``irreps_in`` to those of ``irreps_out``; ``types`` is one-hot."""
        attributes = types if self.by_type else types @ embedding
        out = {}
        weights = self.scaled(self._scale, embedding, *self.weights.values())
        for (irrep, _), weight in zip(self.irreps_out, weights, strict=True):
            block = x[irrep]
            if not (self.by_type and self.num_types == 1):  # whose attribute is 1
                block = (block.unsqueeze(3) * attributes[:, None, None, :]).flatten(2)
            out[irrep] = _mixed(block, weight)
        return out

    def _scale(self, embedding: Tensor, *weights: Tensor) -> list[Tensor]:
        """What each irrep's block is multiplied by, [inputs, outputs]."""
        scaled = []
        for (irrep, _), weight in zip(self.irreps_out, weights, strict=True):
            fan_in = self.irreps_in.channels[irrep] * self.embedding_dim
            matrix = fan_in**-0.5 * weight
            if self.by_type:
                matrix = torch.einsum("td,udv->utv", embedding, matrix)
            scaled.append(matrix.flatten(0, 1))
        return scaled


def _mixed(
    x: Float[Tensor, "rows components inputs"], weight: Float[Tensor, "inputs outputs"]
) -> Float[Tensor, "rows components outputs"]:
    """x W as one product of matrices; torch 2.11 can not trace that of a 3-dimensional tensor for all sizes."""
    return torch.unflatten(x.flatten(0, 1) @ weight, 0, (-1, x.shape[1]))
