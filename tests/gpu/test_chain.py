"""Chains of Allegro's contractions on a CUDA device: the reference's numbers, and less memory for the same forces."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.kernels.chains import chains, check
from torch import nn

from nequip_allegro.model import Allegro, AllegroConfig, contraction_specs
from nequip_allegro.tensors import chain_specs
from nequip_core.graph import to
from nequip_core.models.build import build_model, model_info
from nequip_core.ops.contracts import ChainSpec
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.tracing import Sizes, sample_graph
from nequip_kernels.chain.make import make_chain

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
LENGTHS = (86, 0, 71, 130, 99, 1, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spec",
    [*chains(2, channels=64, layers=2), *chains(2, channels=64), *chains(1, channels=24), *chains(3, channels=32)],
)
def test_the_reference(spec: ChainSpec, dtype: torch.dtype) -> None:
    check(spec, dtype, CUDA, atoms=24, lengths=LENGTHS)


def test_forces_of_a_model_and_its_memory() -> None:
    registry = load_registry()
    config = AllegroConfig(
        types=["H", "O"],
        cutoff=5.0,
        l_max=2,
        num_layers=2,
        num_scalar_features=64,
        num_tensor_features=64,
        avg_num_neighbors=20.0,
        atomic_energies={"H": -1.0, "O": -2.0},
        energy_scale=1.0,
    )
    model = build_model(registry.models["allegro"], config, Ops(registry.kernels, device=CUDA))
    plain = Potential(model).to(CUDA).eval().requires_grad_(False)
    chained = copy.deepcopy(plain)
    architecture = next(one for one in chained.modules() if isinstance(one, Allegro))
    architecture.chains = nn.ModuleList(
        make_chain(spec, torch.float32, CUDA) for spec in chain_specs(contraction_specs(config))
    )
    graph = to(sample_graph(model_info(config), Sizes(1, 3000, 200_000), 0), CUDA)
    predictions, peaks = [], []
    for potential in (plain, chained):
        potential(graph)  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        predictions.append(potential(graph))
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    expected, found = predictions
    scale = expected.forces.abs().max()
    assert float((found.forces - expected.forces).abs().max() / scale) < 1e-5
    assert float((found.energy - expected.energy).abs() / expected.energy.abs()) < 1e-5
    assert peaks[1] < 0.9 * peaks[0]
