"""The two forms of the reference contraction are one operator: value, first and second derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nequip_core.graph import Graph, build_graph, collate
from nequip_core.neighbors import make_matscipy
from nequip_core.o3 import SCALAR, Irrep, wigner_3j
from nequip_core.ops.contraction import DenseContraction, UnrolledContraction
from nequip_core.ops.contracts import ContractionSpec

HARMONICS = (SCALAR, Irrep(1, -1), Irrep(2, 1))
ALL = tuple(Irrep(degree, p) for degree in range(3) for p in (1, -1))

SPECS = {
    "first": ContractionSpec(HARMONICS, ALL[:1] + ALL[2:], 2, 3, coupled=True, factors=True),
    "middle": ContractionSpec(ALL, ALL, 2, 3, coupled=True, factors=False),
    "uncoupled": ContractionSpec(HARMONICS, HARMONICS, 2, 3, coupled=False, factors=False),
    "last": ContractionSpec(HARMONICS, (SCALAR,), 2, 3, coupled=True, factors=False),
    "scalars apart": ContractionSpec(HARMONICS, HARMONICS, 2, 3, coupled=True, factors=False, scalars_apart=True),
}


@pytest.fixture(params=["ragged", "uniform", "no edges"])
def graph(request: pytest.FixtureRequest) -> Graph:
    """Rows of different lengths with an atom without edges in between; rows of equal length; no rows."""
    rng = np.random.default_rng(5)
    cell, pbc, cutoffs = np.zeros((3, 3)), np.full(3, False), np.array([[2.0]])
    counts = {"ragged": (4, 1, 3), "uniform": (3, 3), "no edges": (1, 1)}[request.param]
    graphs = []
    for n in counts:
        positions = rng.normal(size=(n, 3)) * 0.4 + np.arange(n)[:, None] * 0.6
        pairs = make_matscipy(2.0)(positions, cell, pbc)
        graphs.append(build_graph(positions, np.zeros(n, dtype=np.int64), pairs, cell, cutoffs))
    return collate(graphs)


def inputs(spec: ContractionSpec, graph: Graph, degrees: int) -> list[Tensor]:
    edges = graph.edge_shift.shape[0]
    rows = spec.l_max + 1 if spec.factors else spec.dim_in
    sizes = [
        (edges, rows, spec.channels),
        (edges, degrees, spec.channels),
        (edges, (spec.l_max + 1) ** 2),
        (len(spec.paths), spec.channels if spec.coupled else 1),
    ]
    return [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("degrees", [1, 3])
@pytest.mark.parametrize("name", SPECS)
def test_two_forms_are_one_operator(name: str, degrees: int, graph: Graph) -> None:
    spec = SPECS[name]
    given = inputs(spec, graph, degrees)
    cotangent = torch.randn(given[0].shape[0], spec.dim_out, spec.channels, dtype=torch.float64)

    def all_orders(contraction: torch.nn.Module) -> list[Tensor]:
        out, environment, *apart = contraction(*given, graph)
        total = sum([(one * cotangent[:, 0]).cos().sum() for one in apart], (out * cotangent).sin().sum())
        first = torch.autograd.grad(total, given, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), given)
        if spec.scalars_apart:
            torch.testing.assert_close(apart, [out[:, 0]], rtol=0, atol=0)
        return [out, environment, *apart, *first, *second]

    ours, theirs = (all_orders(form(spec).double()) for form in (DenseContraction, UnrolledContraction))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11 * scale)


def test_the_contract_as_written(graph: Graph) -> None:
    """The formula of contracts.py, edge by edge."""
    spec = SPECS["uncoupled"]
    features, weights, harmonics, paths = inputs(spec, graph, 3)
    atoms = len(graph.types)
    environment = torch.zeros(atoms, 9, spec.channels, dtype=torch.float64)
    for e, i in enumerate(graph.edge_index[0].tolist()):
        for m in range(9):
            environment[i, m] += weights[e, int(m**0.5)] * harmonics[e, m]
    out = torch.zeros(features.shape[0], spec.dim_out, spec.channels, dtype=torch.float64)
    starts = {SCALAR: 0, Irrep(1, -1): 1, Irrep(2, 1): 4}
    for p, path in enumerate(spec.paths):
        table = path.irrep_out.dim**0.5 * wigner_3j(path.irrep_in.l, path.l_edge, path.irrep_out.l)
        a = slice(starts[path.irrep_in], starts[path.irrep_in] + path.irrep_in.dim)
        k = slice(starts[path.irrep_out], starts[path.irrep_out] + path.irrep_out.dim)
        around = environment[graph.edge_index[0], path.l_edge**2 : (path.l_edge + 1) ** 2]
        out[:, k] += paths[p] * torch.einsum("abc,eau,ebu->ecu", table, features[:, a], around)
    ours, ours_environment = DenseContraction(spec).double()(features, weights, harmonics, paths, graph)
    torch.testing.assert_close(ours, out)
    torch.testing.assert_close(ours_environment, environment)


@pytest.mark.parametrize(
    "irreps", [(SCALAR,), HARMONICS[1:], HARMONICS[::-1]], ids=["nothing else", "none", "not first"]
)
def test_scalars_apart_must_come_first_and_not_alone(irreps: tuple[Irrep, ...]) -> None:
    with pytest.raises(ValueError, match=r"begin with 0e and go on, received \S+\."):
        ContractionSpec(HARMONICS, irreps, 2, 3, coupled=True, factors=False, scalars_apart=True)
