"""A learnable pair potential: E_i = sum_j phi(r_ij), phi a sum of Gaussians of the distance for each pair of types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.errors import ConfigError
from nequip_core.graph import Graph
from nequip_core.models.base import ModelConfig, ModelInfo, key, per_type
from nequip_core.nn.embedding import one_hot
from nequip_core.ops.segment import segment_sum


@dataclass
class ToyConfig(ModelConfig):
    """Keys of the toy."""

    name: str = key("toy", "registered name of the model")
    num_basis: int = key(8, "Gaussians between 0 and the cut-off")

    def message_passing_layers(self) -> int:
        """Strictly local."""
        return 0


class PairPotential(nn.Module):
    """Dimensionless energies of atoms from the distances to their neighbours."""

    def __init__(self, config: ToyConfig, info: ModelInfo) -> None:
        super().__init__()
        self.num_types = len(info.types)
        self.weights = nn.Parameter(torch.randn(self.num_types**2, config.num_basis) / config.num_basis)
        self.cutoffs: Tensor
        self.centres: Tensor
        self.norm: Tensor
        # Geometry stays in float64, and is no part of a checkpoint: the config says it.
        cutoffs = torch.tensor(info.pair_cutoffs, dtype=torch.float64).flatten()
        centres = torch.linspace(0, 1, config.num_basis, dtype=torch.float64)
        self.register_buffer("cutoffs", cutoffs, persistent=False)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("norm", per_type(config.avg_num_neighbors, info.types).rsqrt(), persistent=False)

    def forward(self, graph: Graph, edge_vectors: Float[Tensor, "edges 3"]) -> Float[Tensor, "atoms"]:
        """Energies in the model's dtype from edge vectors in Å, float64."""
        dtype = self.weights.dtype
        centre, neighbor = graph.types[graph.edge_index].unbind(0)
        pair = one_hot(centre * self.num_types + neighbor, self.num_types**2, torch.float64)
        x = (edge_vectors.norm(dim=1) / (pair @ self.cutoffs)).clamp(max=1.0).unsqueeze(1)
        # (1 - x^2)^3 ends with two continuous derivatives.
        basis = torch.exp(-((self.centres.numel() * (x - self.centres)) ** 2)) * (1 - x**2) ** 3
        energies = (basis.to(dtype) * (pair.to(dtype) @ self.weights)).sum(dim=1)
        norm = one_hot(graph.types, self.num_types, torch.float64) @ self.norm
        return norm.to(dtype) * segment_sum(energies, graph.edge_index[0], graph.row_ptr)


def build(config: ToyConfig, info: ModelInfo, ops: Any) -> PairPotential:
    """A new pair potential with random weights. It needs no heavy operator, so ``ops`` is not used.

    Raises:
        ConfigError: fewer than two basis functions.
    """
    if config.num_basis < 2:
        raise ConfigError(f"model.num_basis must be at least 2, received {config.num_basis}.")
    return PairPotential(config, info)
