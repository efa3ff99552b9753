"""The chain's operators where there is no GPU: what they compute, and what torch's compilers make of them."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.chains import chains, check

from nequip_core.errors import InputError
from nequip_core.graph import Graph
from nequip_core.ops.contracts import ChainSpec
from nequip_core.testing.kernels import random_graph
from nequip_kernels import requirements
from nequip_kernels.chain import operators
from nequip_kernels.chain.make import KernelChain, make_chain, refuses

CPU = torch.device("cpu")


@pytest.mark.parametrize("spec", [*chains(2), *chains(3, parity=False, layers=2)])
def test_on_the_cpu_operators_are_the_reference(spec: ChainSpec) -> None:
    check(spec, torch.float64, CPU)


@pytest.mark.parametrize("spec", chains(1, coupled=False))
def test_one_environment_weight_for_all_degrees(spec: ChainSpec) -> None:
    check(spec, torch.float64, CPU, degrees=1)


def test_what_the_kernels_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers of l_max 2 with parity are served, l_max 3 stores its features."""
    monkeypatch.setattr(requirements, "missing", lambda device: None)
    assert [refuses(spec, torch.float32, CPU) for spec in chains(2)] == [None, None]
    _, both = chains(3, parity=False, layers=2)
    assert (
        refuses(both, torch.float32, CPU)
        == "its couplings have 369 terms, and a chain at most 300: features are stored"
    )


def inputs(spec: ChainSpec, graph: Graph) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    edges, first = graph.edge_shift.shape[0], spec.layers[0]
    components = (first.l_max + 1) ** 2
    factors = torch.randn(edges, first.l_max + 1, first.channels, dtype=torch.float64, requires_grad=True)
    harmonics = torch.randn(edges, components, dtype=torch.float64, requires_grad=True)
    around = [
        torch.randn(len(graph.types), components, first.channels, dtype=torch.float64, requires_grad=True)
        for _ in spec.layers
    ]
    paths = [torch.randn(len(layer.paths), first.channels, dtype=torch.float64) for layer in spec.layers]
    return factors, harmonics, around, paths


@pytest.mark.parametrize("spec", chains(1), ids=["scalars", "two layers"])
def test_opcheck(spec: ChainSpec) -> None:
    graph = random_graph(4, (3, 0, 2))
    chain = make_chain(spec, torch.float64, CPU)
    assert isinstance(chain, KernelChain)
    factors, harmonics, around, paths = inputs(spec, graph)
    text = chain.text
    torch.library.opcheck(operators.chain.operator, (factors, harmonics, around, paths, graph.row_ptr, text))
    torch.library.opcheck(operators.environment.operator, (factors, harmonics, graph.row_ptr, text))


def test_no_derivative_by_path_weights() -> None:
    spec = chains(1)[1]
    graph = random_graph(4, (3, 0, 2))
    factors, harmonics, around, paths = inputs(spec, graph)
    weights = factors.detach().clone()
    chain = make_chain(spec, torch.float64, CPU)
    trained = [one.requires_grad_() for one in paths]
    result = chain(factors, harmonics, around[:1], weights, trained, graph)[0].sum()
    torch.autograd.grad(result, factors, retain_graph=True)  # as forces ask, whatever the weights are
    with pytest.raises(InputError, match="has no derivative by path weights"):
        torch.autograd.grad(result, trained)


def test_shapes_are_checked() -> None:
    spec = chains(1)[1]
    graph = random_graph(4, (3, 0, 2))
    factors, harmonics, around, paths = inputs(spec, graph)
    chain = make_chain(spec, torch.float64, CPU)
    with pytest.raises(ValueError, match="factors has the shape"):
        chain(factors[:, :1], harmonics, around[:1], factors, paths, graph)
    with pytest.raises(ValueError, match="takes 1 environments"):
        chain(factors, harmonics, around, factors, paths, graph)
