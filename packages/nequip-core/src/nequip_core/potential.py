"""Energy to forces, virial and atomic virials: the only place with ``autograd.grad``.

One gradient by the edge vectors, f_e = dE/dr_e with E the sum of the local atoms' energies, gives everything:

* forces: F_i = sum over edges with centre i of f_e - sum over edges with neighbour i of f_e  (= -dE/dx_i)
* virial of a structure: -sum_e r_e (x) f_e  (= -dE/dstrain, LAMMPS' sign)
* stress: -virial / V  (tension positive, ASE's sign)
* atomic virial of atom k: -sum over edges with neighbour k of r_e (x) f_e; their sum is the virial.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph, edge_vectors
from nequip_core.models.base import EnergyModel
from nequip_core.ops.direct import is_observed
from nequip_core.ops.kept import forget
from nequip_core.ops.promises import promised
from nequip_core.ops.segment import segment_sum, sum_long_segments


class Prediction(NamedTuple):
    """What a potential computes, float64.

    Attributes:
        energy: sum of the local atoms' energies of each structure, eV.
        atomic_energy: eV; ghosts' are not counted in ``energy``.
        forces: -dE/dx, eV/Å.
        virial: -dE/dstrain, eV.
        atomic_virial: eV; None unless asked for.
    """

    energy: Float[Tensor, "structures"]
    atomic_energy: Float[Tensor, "atoms"]
    forces: Float[Tensor, "atoms 3"]
    virial: Float[Tensor, "structures 3 3"]
    atomic_virial: Float[Tensor, "atoms 3 3"] | None = None


class Potential(nn.Module):
    """An energy model with its derivatives."""

    def __init__(self, model: EnergyModel) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> Self:
        """As torch's; what evaluations kept of the weights is forgotten."""
        if mode:
            forget()
        return super().train(mode)

    def forward(self, graph: Graph, *, atomic_virial: bool = False) -> Prediction:
        """Energies, forces and virials of a graph; differentiable by the weights in training mode."""
        alone = not is_observed()
        with torch.enable_grad(), promised(constant_weights=alone and not self.training, vectors_once=alone):
            vectors = edge_vectors(graph).detach().requires_grad_()
            atomic_energy = self.model(graph, vectors)
            counted = graph.local.to(atomic_energy.dtype)
            (gradient,) = torch.autograd.grad(atomic_energy, vectors, counted, create_graph=self.training)
        if not self.training:
            vectors, atomic_energy = vectors.detach(), atomic_energy.detach()
        return derivatives(graph, vectors, atomic_energy, gradient, atomic_virial=atomic_virial)


def derivatives(
    graph: Graph,
    vectors: Float[Tensor, "edges 3"],
    atomic_energy: Float[Tensor, "atoms"],
    gradient: Float[Tensor, "edges 3"],
    *,
    atomic_virial: bool = False,
) -> Prediction:
    """What follows from the energies and their gradient by the edge vectors."""
    centre, neighbor = graph.edge_index.unbind(0)
    pulled = segment_sum(gradient, centre, graph.row_ptr)
    products = (vectors.unsqueeze(2) * gradient.unsqueeze(1)).flatten(1)
    by_neighbor = neighbor, graph.neighbor_ptr, graph.by_neighbor
    # One pass over the edges for both.
    pushed, products = segment_sum(torch.cat([gradient, products], dim=1), *by_neighbor).split_with_sizes([3, 9], dim=1)
    counted = torch.where(graph.local, atomic_energy, 0.0).unsqueeze(1)
    of_structures = _sum_of_structures(torch.cat([counted, products], dim=1), graph)
    energy, virial = of_structures.split_with_sizes([1, 9], dim=1)
    return Prediction(
        energy=energy.squeeze(1),
        atomic_energy=atomic_energy,
        forces=pulled - pushed,
        virial=-torch.unflatten(virial, 1, (3, 3)),
        atomic_virial=-torch.unflatten(products, 1, (3, 3)) if atomic_virial else None,
    )


def _sum_of_structures(of_atoms: Float[Tensor, "atoms columns"], graph: Graph) -> Float[Tensor, "structures columns"]:
    if is_observed() and not of_atoms.requires_grad:  # compiled for any engine: one structure may be a million atoms
        return sum_long_segments(of_atoms, graph.structure_ptr)
    return segment_sum(of_atoms, graph.structure, graph.structure_ptr)


def stress(
    virial: Float[Tensor, "structures 3 3"], volume: Float[Tensor, "structures"]
) -> Float[Tensor, "structures 3 3"]:
    """-virial / V, symmetrised, eV/Å³, tension positive. NaN where the volume is NaN."""
    return -0.5 * (virial + virial.mT) / volume[:, None, None]
