"""nequip.radial_convolution/1 in parts of the edges: what it computes, how much memory it takes, how it is compiled."""

from __future__ import annotations

import pytest
import torch

from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import ConvolutionSpec, RadialConvolutionSpec
from nequip_core.testing.kernels import check_kernel, radial_convolution_shapes, random_graph
from nequip_kernels.radial import operators, parts
from nequip_kernels.radial.make import make_radial_convolution

CPU = torch.device("cpu")
SMALL = RadialConvolutionSpec(
    ConvolutionSpec(
        Irreps([(SCALAR, 2), (Irrep(0, -1), 3), (Irrep(1, -1), 4)]), 1, True, (SCALAR, Irrep(1, 1), Irrep(1, -1))
    ),
    width=5,
)


def limit(monkeypatch: pytest.MonkeyPatch, edges: int, spec: RadialConvolutionSpec = SMALL) -> None:
    """Weights of so many edges may be there at a time, in float64."""
    monkeypatch.setattr(parts, "LARGEST_WEIGHTS", edges * spec.convolution.num_weights * 8)


@pytest.mark.parametrize("edges", [1, 3, 7, 30, 1000])
def test_parts(monkeypatch: pytest.MonkeyPatch, edges: int) -> None:
    limit(monkeypatch, edges)
    check_kernel("parts", SMALL, torch.float64, CPU, atoms=9)


def test_operators_keep_torchs_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 3)
    graph = random_graph(4, (2, 0, 3))
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in radial_convolution_shapes(SMALL, graph).values()
    ]
    kernel = make_radial_convolution(SMALL, torch.float64, CPU)
    about = (graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr)
    grad = torch.randn(4, SMALL.convolution.irreps_out.dim, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operators.radial_convolve.operator, (*inputs, *about, kernel.text))
    for wanted in (True, False):
        torch.library.opcheck(operators.radial_convolve_backward.operator, (*inputs, grad, *about, wanted, kernel.text))
    still = [x.detach() for x in (*inputs, grad)]
    for last in (torch.randn_like(inputs[3]), None):
        moving = [*(torch.randn_like(x) for x in inputs[:3]), last]
        torch.library.opcheck(
            operators.radial_convolve_double_backward.operator, (*still, *moving, *about, kernel.text)
        )
