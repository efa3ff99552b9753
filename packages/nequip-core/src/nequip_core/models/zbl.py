"""Nuclear repulsion of Ziegler, Biersack and Littmark (The Stopping and Range of Ions in Matter, 1985)."""

from __future__ import annotations

import torch
from ase.data import atomic_numbers
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.models.base import ModelInfo
from nequip_core.nn.radial import ScaledDistance, polynomial_envelope
from nequip_core.ops.segment import segment_sum

COULOMB = 14.399645
"""e^2 / (4 pi epsilon_0), eV Å."""

SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
"""The universal screening function: sum of c exp(-d x), x = r (Zi^0.23 + Zj^0.23) / 0.46850 Å."""


class ZBL(nn.Module):
    """Half of each directed edge's repulsion goes to its centre, smoothly cut off with the model's envelope."""

    def __init__(self, info: ModelInfo, p: int = 6) -> None:
        super().__init__()
        charges = torch.tensor([atomic_numbers[element] for element in info.elements], dtype=torch.float64)
        self.register_buffer("charges", charges, persistent=False)
        self.charges: Tensor
        self.distance = ScaledDistance(info.pair_cutoffs)
        self.p = p

    def forward(self, graph: Graph, edge_vectors: Float[Tensor, "edges 3"]) -> Float[Tensor, "atoms"]:
        """eV, float64, from edge vectors in Å."""
        r = edge_vectors.norm(dim=1, keepdim=True)
        zi, zj = self.charges[graph.types][graph.edge_index].unsqueeze(2).unbind(0)
        x = r * (zi**0.23 + zj**0.23) / 0.46850
        screening = torch.stack([c * torch.exp(-d * x) for c, d in SCREENING]).sum(0)
        energy = 0.5 * COULOMB * zi * zj / r * screening * polynomial_envelope(self.distance(graph, r), self.p)
        return segment_sum(energy.squeeze(1), graph.edge_index[0], graph.row_ptr)
