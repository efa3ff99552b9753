"""What every model is: a config, the facts that engines need, and graph -> atomic energies.

An architecture (a plugin's, or NequIP) gives dimensionless energies; `EnergyModel` gives them their scale and shift in
float64 and adds pair potentials, so that an architecture is only its paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.keys import MISSING, key
from nequip_core.nn.embedding import of_types
from nequip_core.ops.select import Ops

__all__ = [
    "Architecture",
    "ArchitectureConfig",
    "EnergyModel",
    "ModelConfig",
    "ModelInfo",
    "Settling",
    "key",
    "per_type",
]


@dataclass
class ModelConfig:
    """Keys common to all models. ``auto``, ``least_squares`` ... are resolved from the training set before a build."""

    name: str = key(MISSING, "registered name of the model")
    cutoff: float = key(MISSING, "neighbours are seen up to this distance", "Å")
    pair_cutoffs: dict[str, Any] = key({}, "{centre: {neighbour: cutoff}}, each at most cutoff", "Å")
    types: Any = key("auto", "auto: the elements of the training set by atomic number; or a list of names")
    elements: dict[str, str] = key({}, "element of each type whose name is not an element symbol")
    dtype: str = key("float32", "float32 | float64; geometry, scale, shift and sums are float64 in both")
    atomic_energies: Any = key("least_squares", "E0: least_squares | isolated_atoms | mean | zero | {type: eV}", "eV")
    train_atomic_energies: bool = key(False, "whether the atomic energies are trained")
    energy_scale: Any = key("forces_rms", "forces_rms | per_atom_energy_std | number | {type: number}", "eV")
    train_energy_scale: bool = key(False, "whether the energy scale is trained")
    avg_num_neighbors: Any = key("auto", "auto | auto_per_type | number | {type: number}; by receiving type")
    zbl: bool = key(False, "add the nuclear repulsion of Ziegler, Biersack and Littmark")


class ArchitectureConfig(Protocol):
    """A `ModelConfig` that also says how far information travels."""

    def message_passing_layers(self) -> int:
        """Layers whose messages travel one cut-off each; 0: strictly local."""
        ...


@dataclass(frozen=True)
class ModelInfo:
    """The facts of a model that neighbour lists and engines need.

    Attributes:
        cutoff: largest cut-off, Å.
        types: names of the types, in index order.
        elements: element symbol of each type.
        pair_cutoffs: [type of centre][type of neighbour], Å.
        message_passing_layers: 0 for strictly local models.
        dtype: of the weights and the inner arithmetic.
    """

    cutoff: float
    types: tuple[str, ...]
    elements: tuple[str, ...]
    pair_cutoffs: tuple[tuple[float, ...], ...]
    message_passing_layers: int
    dtype: str = "float32"

    @property
    def strictly_local(self) -> bool:
        """Whether an atom's energy depends on atoms within one cut-off only."""
        return self.message_passing_layers == 0

    @property
    def ghost_distance(self) -> float:
        """How far from an atom others can change its energy, Å."""
        return self.cutoff * max(1, self.message_passing_layers)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]


class Architecture(Protocol):
    """What `ModelEntry.build` returns: an `nn.Module` with this signature.

    The energies are dimensionless, in the model's dtype, and zero for an atom without edges.
    """

    def __call__(self, graph: Graph, edge_vectors: Float[Tensor, "edges 3"]) -> Float[Tensor, "atoms"]:
        """Dimensionless atomic energies."""
        ...


@runtime_checkable
class Settling(Protocol):
    """An architecture whose choice of kernels hangs on its weights."""

    def settle(self, ops: Ops) -> None:
        """Called once, when the weights of a file are loaded: gives up what can not serve them (`Ops.withdraw`).

        Raises:
            ConfigError: it was named.
        """
        ...


def per_type(value: float | Mapping[str, float], types: tuple[str, ...]) -> Tensor:
    """One float64 per type from a number for all or a mapping by type name. [types]."""
    values = [float(value[t]) for t in types] if isinstance(value, Mapping) else [float(value)] * len(types)
    return torch.tensor(values, dtype=torch.float64)


class EnergyModel(nn.Module):
    """Atomic energies in eV: E_i = scale_t E~_i + E0_t in float64, plus pair potentials."""

    def __init__(
        self,
        architecture: nn.Module,
        info: ModelInfo,
        *,
        scale: Float[Tensor, "types"],
        shift: Float[Tensor, "types"],
        train_scale: bool = False,
        train_shift: bool = False,
        pair_potentials: tuple[nn.Module, ...] = (),
    ) -> None:
        super().__init__()
        self.info = info
        self.architecture = architecture
        self.scale = nn.Parameter(scale.double(), requires_grad=train_scale)
        self.shift = nn.Parameter(shift.double(), requires_grad=train_shift)
        self.pair_potentials = nn.ModuleList(pair_potentials)

    def forward(self, graph: Graph, edge_vectors: Float[Tensor, "edges 3"]) -> Float[Tensor, "atoms"]:
        """Energy of each atom in eV, float64, from edge vectors in Å, float64."""
        energy: Tensor = self.architecture(graph, edge_vectors).double()
        energy = of_types(self.scale, graph.types) * energy + of_types(self.shift, graph.types)
        for pair_potential in self.pair_potentials:
            energy = energy + pair_potential(graph, edge_vectors)
        return energy
