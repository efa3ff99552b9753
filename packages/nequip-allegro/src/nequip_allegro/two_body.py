"""What a pair of atoms knows of each other: types and distance, as scalars. Zero at the cut-off."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.nn.embedding import one_hot
from nequip_core.nn.mlp import MLP
from nequip_core.nn.radial import BesselBasis
from nequip_core.ops.kept import Kept
from nequip_core.ops.promises import weights_are_constant


class BesselEmbedding(nn.Module):
    """(C[t_i] | N[t_j]) * Linear(b(x)): embeddings of both types, each half as wide, times the radial basis."""

    def __init__(self, num_types: int, dim: int, num_bessels: int, p: int, *, train_bessels: bool) -> None:
        super().__init__()
        self.num_types = num_types
        self.centre = nn.Parameter(torch.randn(num_types, dim // 2))
        self.neighbor = nn.Parameter(torch.randn(num_types, dim - dim // 2))
        self.bessels = BesselBasis(num_bessels, p, trainable=train_bessels)
        self.linear = MLP([num_bessels, dim])
        self.table = Kept()

    def forward(self, graph: Graph, x: Float[Tensor, "edges 1"]) -> Float[Tensor, "edges dim"]:
        """In the model's dtype, from the scaled distance x in float64."""
        radial: Tensor = self.linear(self.bessels(x).to(self.centre.dtype))
        return self._of_types(graph) * radial

    def _of_types(self, graph: Graph) -> Float[Tensor, "edges dim"]:
        """The embeddings of both types of each edge, side by side."""
        if weights_are_constant():
            centre, neighbor = graph.types[graph.edge_index].unbind(0)
            table = self.table(self._of_pairs, self.centre, self.neighbor)
            return table.index_select(0, torch.add(neighbor, centre, alpha=self.num_types))
        types = one_hot(graph.types, self.num_types, self.centre.dtype)
        centre, neighbor = graph.edge_index.unbind(0)
        # The table's rows are taken for each edge by a product with one-hot rows: a deterministic gradient.
        return torch.cat([types[centre] @ self.centre, types[neighbor] @ self.neighbor], dim=1)

    def _of_pairs(self, centre: Tensor, neighbor: Tensor) -> Float[Tensor, "pairs dim"]:
        """The same of each ordered pair of types."""
        count = self.num_types
        return torch.cat([centre.repeat_interleave(count, dim=0), neighbor.repeat(count, 1)], dim=1)


class SplineEmbedding(nn.Module):
    """Splines for each ordered pair of types: sum_k W[pair, u, k] B_k(x).

    B_k(x) = (1 - cos(2 pi (clip(x, l_k, l_k + D) - l_k) / D))^2 / 4 are smooth bumps with l_k = (k - span) / num and
    D = (span + 1) / num, the last of which ends at the cut-off.
    """

    def __init__(self, num_types: int, dim: int, num_splines: int, span: int) -> None:
        super().__init__()
        self.num_types, self.dim = num_types, dim
        bound = math.sqrt(3 / span)
        self.weights = nn.Parameter(torch.empty(num_types**2, dim * num_splines).uniform_(-bound, bound))
        self.num_splines = num_splines
        self.width = (span + 1) / num_splines
        left = (torch.arange(num_splines, dtype=torch.float64) - span) / num_splines
        self.register_buffer("left", left, persistent=False)
        self.left: Tensor

    def forward(self, graph: Graph, x: Float[Tensor, "edges 1"]) -> Float[Tensor, "edges dim"]:
        """In the model's dtype, from the scaled distance x in float64."""
        inside = (x - self.left).clamp(0.0, self.width)
        bumps = 0.25 * (1 - torch.cos(inside * (2 * math.pi / self.width))).square()
        types = one_hot(graph.types, self.num_types, torch.float64)
        centre, neighbor = types[graph.edge_index].unbind(0)
        pairs = (centre.unsqueeze(2) * neighbor.unsqueeze(1)).flatten(1)
        table = torch.unflatten(pairs @ self.weights.double(), 1, (self.dim, self.num_splines))
        embedding: Tensor = (table @ bumps.unsqueeze(2)).squeeze(2)
        return embedding.to(self.weights.dtype)
