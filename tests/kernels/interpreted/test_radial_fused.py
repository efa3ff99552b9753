"""The kernels of a convolution that stores no weights, run by Triton's interpreter: to 1e-12 in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nequip_core.graph import Graph
from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops import reference
from nequip_core.ops.contracts import ConvolutionSpec, RadialConvolutionSpec
from nequip_core.testing.kernels import TOLERANCE, derivatives, radial_convolution_shapes, random_graph
from nequip_kernels.radial.fused_make import make_fused

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CPU = torch.device("cpu")
BOTH = [tuple(Irrep(degree, p) for degree in range(l_max + 1) for p in (1, -1)) for l_max in range(4)]


def check(
    spec: RadialConvolutionSpec, dtype: torch.dtype, *, atoms: int, lengths: tuple[int, ...], seed: int = 0
) -> None:
    """Value and first derivatives, by all but the matrix, are those of the reference in float64."""
    graph = random_graph(atoms, lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in radial_convolution_shapes(spec, graph).items()
    }
    matrix = inputs.pop("matrix")
    kernel, definition = make_fused(spec, dtype, CPU), reference.make_radial_convolution(spec, torch.float64, CPU)

    def ours(h: Tensor, harmonics: Tensor, hidden: Tensor, graph: Graph) -> Tensor:
        result: Tensor = kernel(h, harmonics, hidden, matrix, graph)
        return result

    def theirs(h: Tensor, harmonics: Tensor, hidden: Tensor, graph: Graph) -> Tensor:
        result: Tensor = definition(h, harmonics, hidden, matrix.double(), graph)
        return result

    received = derivatives(ours, inputs, graph, 1, seed)
    expected = derivatives(theirs, {name: x.double() for name, x in inputs.items()}, graph, 1, seed)
    assert list(received) == ["value", "by h", "by harmonics", "by hidden"]
    for name, one in expected.items():
        largest = float(one.abs().max()) if one.numel() else 1.0
        atol = TOLERANCE[dtype] * largest
        torch.testing.assert_close(received[name].double(), one, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


SPECS = {
    "first layer": RadialConvolutionSpec(ConvolutionSpec(Irreps([(SCALAR, 3)]), 1, True, (SCALAR, Irrep(1, -1))), 8),
    "l_max 0": RadialConvolutionSpec(ConvolutionSpec(Irreps([(SCALAR, 32)]), 0, True, (SCALAR,)), 32),
    "channels differ, two blocks of them, an odd width": RadialConvolutionSpec(
        ConvolutionSpec(Irreps([(SCALAR, 70), (Irrep(1, -1), 5)]), 1, True, (SCALAR, Irrep(1, 1), Irrep(1, -1))), 37
    ),
    "an irrep without paths, last layer": RadialConvolutionSpec(
        ConvolutionSpec(Irreps([(SCALAR, 2), (Irrep(0, -1), 3), (Irrep(1, -1), 4)]), 1, True, (SCALAR,)), 70
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_value_and_first_derivatives(name: str) -> None:
    check(SPECS[name], torch.float64, atoms=4, lengths=(19, 0, 1, 2), seed=1)


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (2, (0,)), (1, (1,)), (1, (16,))], ids=str)
def test_few_edges(atoms: int, lengths: tuple[int, ...]) -> None:
    check(SPECS["first layer"], torch.float64, atoms=atoms, lengths=lengths)


@pytest.mark.parametrize("channels", [32, 64, 128])
def test_float32(channels: int) -> None:
    convolution = ConvolutionSpec(Irreps([(SCALAR, channels)]), 1, True, (SCALAR, Irrep(1, -1)))
    check(RadialConvolutionSpec(convolution, 64), torch.float32, atoms=2, lengths=(35, 3))


@pytest.mark.slow
@pytest.mark.parametrize("l_max", [1, 2, 3])
@pytest.mark.parametrize("parity", [True, False], ids=["parity", "no parity"])
def test_all_kinds(l_max: int, parity: bool) -> None:
    wanted = BOTH[l_max] if parity else tuple(Irrep(degree, 1) for degree in range(l_max + 1))
    convolution = ConvolutionSpec(Irreps((irrep, 2 + irrep.l) for irrep in wanted), l_max, parity, wanted)
    for dtype in (torch.float64, torch.float32):
        check(RadialConvolutionSpec(convolution, 9), dtype, atoms=3, lengths=(4, 0, 18), seed=l_max)
