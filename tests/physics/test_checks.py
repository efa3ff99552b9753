"""Each check can fail: models that break one law each, and a sound one that passes all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nequip_core.errors import CheckError
from nequip_core.graph import Graph
from nequip_core.models.base import ModelConfig, ModelInfo
from nequip_core.ops.segment import segment_sum
from nequip_core.plugins.records import ModelEntry
from nequip_core.testing import checks
from nequip_core.testing.conformance import ASYMMETRIC_CUTOFFS, ModelConformance


@dataclass
class Config(ModelConfig):
    name: str = "many-body"
    layers: int = 1

    def message_passing_layers(self) -> int:
        return self.layers


class ManyBody(nn.Module):
    """tanh of a sum over neighbours, plus the square of a sum of vectors. Faulty models replace one method each."""

    def __init__(self, info: ModelInfo) -> None:
        super().__init__()
        self.info = info
        self.weights = nn.Parameter(torch.randn(len(info.types), dtype=info.torch_dtype))
        self.register_buffer("cutoffs", torch.tensor(info.pair_cutoffs).double(), persistent=False)

    def envelope(self, x: Tensor) -> Tensor:
        return (1 - x.clamp(max=1.0) ** 2) ** 3

    def cutoff(self, graph: Graph) -> Tensor:
        centre, neighbor = graph.types[graph.edge_index]
        return self.cutoffs[centre, neighbor]

    def vectors(self, graph: Graph, vectors: Tensor) -> Tensor:
        return vectors

    def weigh(self, graph: Graph) -> Tensor:
        return self.weights[graph.types[graph.edge_index[1]]]

    def of_atoms(self, graph: Graph, density: Tensor, dipole: Tensor) -> Tensor:
        return torch.tanh(density) + 0.1 * (dipole**2).sum(1)

    def forward(self, graph: Graph, edge_vectors: Tensor) -> Tensor:
        r = self.vectors(graph, edge_vectors)
        each = self.weigh(graph) * self.envelope(r.norm(dim=1) / self.cutoff(graph)).to(self.weights.dtype)
        sums = segment_sum(torch.cat([each[:, None], each[:, None] * r.to(each.dtype)], 1), *self.to_sum(graph))
        return self.of_atoms(graph, sums[:, 0], sums[:, 1:])

    def to_sum(self, graph: Graph) -> tuple[Tensor, Tensor]:
        return graph.edge_index[0], graph.row_ptr


class Anisotropic(ManyBody):
    def of_atoms(self, graph, density, dipole):
        return super().of_atoms(graph, density, dipole) + 0.01 * dipole[:, 0] ** 2


class Polar(ManyBody):
    """Not the same upside down."""

    def of_atoms(self, graph, density, dipole):
        return super().of_atoms(graph, density, dipole) + 0.01 * dipole[:, 2]


class Absolute(ManyBody):
    """Knows where the origin is."""

    def of_atoms(self, graph, density, dipole):
        return torch.tanh(density) * (1 + 1e-3 * graph.positions[:, 0].to(density.dtype))


class InCell(ManyBody):
    """Another image of an atom is another atom."""

    def weigh(self, graph):
        return super().weigh(graph) * torch.exp(-1e-3 * graph.edge_shift.norm(dim=1)).to(self.weights.dtype)


class Numbered(ManyBody):
    """The first atom of a structure is heavier."""

    def of_atoms(self, graph, density, dipole):
        first = torch.arange(len(graph.types)) == graph.structure_ptr[graph.structure]
        return super().of_atoms(graph, density, dipole) * (1 + 0.01 * first)


class Normalised(ManyBody):
    """Subtracts the batch's mean."""

    def of_atoms(self, graph, density, dipole):
        return super().of_atoms(graph, density - 1e-3 * density.mean(), dipole)


class Sized(ManyBody):
    """Energies of atoms depend on the size of the structure."""

    def of_atoms(self, graph, density, dipole):
        atoms = graph.structure_ptr.diff()[graph.structure]
        return super().of_atoms(graph, density, dipole) * (1 + 1e-3 * atoms)


class Biased(ManyBody):
    """An atom without neighbours has an energy."""

    def of_atoms(self, graph, density, dipole):
        return super().of_atoms(graph, density, dipole) + 1e-9


class Mutating(ManyBody):
    def vectors(self, graph, vectors):
        graph.edge_shift.mul_(1 + 1e-12)
        return vectors


class Drifting(ManyBody):
    """Another result at every call."""

    def of_atoms(self, graph, density, dipole):
        with torch.no_grad():
            self.cutoffs *= 1 + 1e-12
        return super().of_atoms(graph, density, dipole)


class Detached(ManyBody):
    """Right energies, wrong forces."""

    def vectors(self, graph, vectors):
        return 0.999 * vectors + 0.001 * vectors.detach()


class _Frozen(torch.autograd.Function):
    """tanh whose first derivative is taken for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(1 - torch.tanh(x) ** 2)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * grads[0]


class OnceDifferentiable(ManyBody):
    def of_atoms(self, graph, density, dipole):
        return _Frozen.apply(density)


class Abrupt(ManyBody):
    def envelope(self, x):
        return torch.exp(-((3 * x) ** 2))


class Kinked(ManyBody):
    """Energy continuous, forces not."""

    def envelope(self, x):
        return 1 - x


class Transposed(ManyBody):
    def cutoff(self, graph):
        centre, neighbor = graph.types[graph.edge_index]
        return self.cutoffs[neighbor, centre].minimum(self.cutoffs[centre, neighbor] + 1.0)


class Inverted(ManyBody):
    """Sums to the neighbour: an atom's energy is its neighbours'."""

    def to_sum(self, graph):
        return graph.edge_index[1], graph.neighbor_ptr


class FarSighted(ManyBody):
    """A second pass over the neighbours."""

    def of_atoms(self, graph, density, dipole):
        centre, neighbor = graph.edge_index
        return super().of_atoms(graph, density + 0.1 * segment_sum(density[neighbor], centre, graph.row_ptr), dipole)


class Coarse(ManyBody):
    """Half precision inside a float32 model."""

    def of_atoms(self, graph, density, dipole):
        coarse = density.half().to(density.dtype) if density.dtype == torch.float32 else density
        return super().of_atoms(graph, coarse, dipole)


class Here:
    """A reference to an object of this file, which has no name that can be imported."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def load(self) -> Any:
        return self.target


def make(model: Callable[[ModelInfo], nn.Module], **keys: Any) -> checks.Case:
    entry = ModelEntry(name="many-body", config=Here(Config), build=Here(lambda config, info, ops: model(info)))
    return checks.make_case(entry, {"pair_cutoffs": ASYMMETRIC_CUTOFFS} | keys)


CHECKS = [getattr(checks, name.removeprefix("test_")) for name in vars(ModelConformance) if name.startswith("test_")]

BROKEN = [
    (checks.rotation, Anisotropic),
    (checks.rotation, Polar),
    (checks.inversion, Polar),
    (checks.no_inversion, ManyBody),
    (checks.translation, Absolute),
    (checks.lattice_shifts, InCell),
    (checks.permutation, Numbered),
    (checks.extensivity, Sized),
    (checks.batch, Normalised),
    (checks.isolated_atom, Biased),
    (checks.isolated_atom, Normalised),
    (checks.inputs_not_mutated, Mutating),
    (checks.inputs_not_mutated, Drifting),
    (checks.forces, Detached),
    (checks.virial_and_stress, Detached),
    (checks.atomic_virials, Detached),
    (checks.single_energies, Detached),
    (checks.weight_gradients, OnceDifferentiable),
    (checks.smoothness, Abrupt),
    (checks.smoothness, Kinked),
    (checks.smoothness, Transposed),
    (checks.float32, Coarse),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_sound_model_passes(check: Callable[[checks.Case], None]) -> None:
    check(make(ManyBody))


@pytest.mark.parametrize(("check", "model"), BROKEN, ids=lambda item: item.__name__)
def test_a_broken_law_is_seen(check: Callable[[checks.Case], None], model: type[ManyBody]) -> None:
    case = make(model)
    with pytest.raises(CheckError):
        check(case)


def test_layers_are_neither_more_nor_less_than_declared() -> None:
    checks.locality(make(FarSighted, layers=2))
    with pytest.raises(CheckError, match="Declare more"):
        checks.locality(make(FarSighted, layers=1))
    with pytest.raises(CheckError, match="Declare fewer"):
        checks.locality(make(ManyBody, layers=2))
