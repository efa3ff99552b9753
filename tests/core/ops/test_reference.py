"""The two forms of the reference convolution are one operator: value, first and second derivative."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nequip_core.graph import Graph, collate
from nequip_core.models.base import EnergyModel
from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import ConvolutionSpec
from nequip_core.ops.reference import DenseConvolution, UnrolledConvolution
from nequip_core.structure import Structure

WANTED = tuple(Irrep(degree, p) for degree in range(3) for p in (1, -1))

SPECS = {
    "scalars in": ConvolutionSpec(Irreps([(SCALAR, 5)]), 2, True, (SCALAR, Irrep(1, -1), Irrep(2, 1))),
    "parity": ConvolutionSpec(Irreps([(irrep, 2 + irrep.l) for irrep in WANTED]), 2, True, WANTED),
    "no parity": ConvolutionSpec(Irreps([(SCALAR, 3), (Irrep(1, 1), 2)]), 3, False, (SCALAR, Irrep(1, 1), Irrep(2, 1))),
    "scalars out": ConvolutionSpec(Irreps([(irrep, 3) for irrep in WANTED]), 2, True, (SCALAR,)),
}


@pytest.fixture
def graph(
    rng: np.random.Generator,
    random_structure: Callable[..., Structure],
    make_model: Callable[..., EnergyModel],
    to_graph: Callable[[Structure, EnergyModel], Graph],
) -> Graph:
    model = make_model(num_layers=1)
    alone = Structure(positions=np.zeros((1, 3)), numbers=np.array([1]), cell=np.zeros((3, 3)), pbc=np.full(3, False))
    return collate([to_graph(s, model) for s in (random_structure(rng, 3), alone, random_structure(rng, 2))])


@pytest.mark.parametrize("name", SPECS)
def test_two_forms_are_one_operator(name: str, graph: Graph) -> None:
    spec = SPECS[name]
    edges = graph.edge_shift.shape[0]
    assert edges > 0
    torch.manual_seed(0)
    inputs = [
        torch.randn(size, dtype=torch.float64, requires_grad=True)
        for size in ((len(graph.types), spec.irreps_in.dim), (edges, (spec.l_max + 1) ** 2), (edges, spec.num_weights))
    ]
    cotangent = torch.randn(len(graph.types), spec.irreps_out.dim, dtype=torch.float64)

    def all_orders(convolution: torch.nn.Module) -> list[Tensor]:
        out = convolution(*inputs, graph)
        first = torch.autograd.grad((out * cotangent).sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), inputs)
        return [out, *first, *second]

    for ours, theirs in zip(all_orders(DenseConvolution(spec)), all_orders(UnrolledConvolution(spec)), strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * theirs.abs().max().item())


def test_the_contract_as_written(graph: Graph) -> None:
    """The formula of contracts.py, edge by edge."""
    from nequip_core.o3 import wigner_3j

    spec = ConvolutionSpec(Irreps([(SCALAR, 2), (Irrep(1, -1), 3)]), 1, True, (SCALAR, Irrep(1, 1), Irrep(1, -1)))
    h = torch.randn(len(graph.types), spec.irreps_in.dim, dtype=torch.float64)
    harmonics = torch.randn(graph.edge_shift.shape[0], 4, dtype=torch.float64)
    weights = torch.randn(graph.edge_shift.shape[0], spec.num_weights, dtype=torch.float64)
    blocks: dict[Irrep, list[Tensor]] = {irrep: [] for irrep, _ in spec.irreps_out}
    offset = 0
    for path in spec.paths:
        channels = spec.irreps_in.channels[path.irrep_in]
        block = torch.zeros(len(graph.types), path.irrep_out.dim, channels, dtype=torch.float64)
        table = path.irrep_out.dim**0.5 * wigner_3j(path.irrep_in.l, path.l_edge, path.irrep_out.l)
        features = spec.irreps_in.split(h)[path.irrep_in]
        for e, (i, j) in enumerate(graph.edge_index.T.tolist()):
            y = harmonics[e, path.l_edge**2 : (path.l_edge + 1) ** 2]
            w = weights[e, offset : offset + channels]
            block[i] += torch.einsum("abc,au,b,u->cu", table, features[j], y, w)
        offset += channels
        blocks[path.irrep_out].append(block)
    expected = spec.irreps_out.join({irrep: torch.cat(parts, -1) for irrep, parts in blocks.items()})
    torch.testing.assert_close(DenseConvolution(spec)(h, harmonics, weights, graph), expected)
