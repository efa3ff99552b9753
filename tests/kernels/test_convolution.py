"""The convolution's operators where there is no GPU: what they compute, and what torch's compilers make of them."""

from __future__ import annotations

import pytest
import torch

from nequip_core.errors import CheckError
from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import NEQUIP_CONVOLUTION, ConvolutionSpec
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.kernels import check_kernel, convolution_shapes, random_graph
from nequip_kernels.convolution import make, operators
from nequip_kernels.convolution.make import make_convolution, refuses

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BOTH = tuple(Irrep(degree, p) for degree in range(3) for p in (1, -1))
SMALL = ConvolutionSpec(
    Irreps([(SCALAR, 2), (Irrep(0, -1), 3), (Irrep(1, -1), 4)]), 1, True, (SCALAR, Irrep(1, 1), Irrep(1, -1))
)
SMALLEST = ConvolutionSpec(SMALL.irreps_in, 0, True, (SCALAR, Irrep(1, -1)))
SPECS = {
    "three irreps": SMALL,
    "an irrep without paths": SMALLEST,
    "l_max 2 with parity": ConvolutionSpec(Irreps((irrep, 2 + irrep.l) for irrep in BOTH), 2, True, BOTH),
}


@pytest.mark.parametrize("name", SPECS)
def test_on_the_cpu_operators_are_the_reference(name: str) -> None:
    check_kernel("triton", SPECS[name], torch.float64, CPU)


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (2, (0,))], ids=["no atoms", "no edges"])
def test_nothing(atoms: int, lengths: tuple[int, ...]) -> None:
    check_kernel("triton", SMALL, torch.float64, CPU, atoms=atoms, lengths=lengths)


def test_operators_keep_torchs_rules() -> None:
    graph = random_graph(4, (2, 0, 3))
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in convolution_shapes(SMALLEST, graph).values()
    ]
    kernel = make_convolution(SMALLEST, torch.float64, CPU)
    about = (graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr, kernel.text)
    grad = torch.randn(4, SMALLEST.irreps_out.dim, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operators.convolve.operator, (*inputs, *about))
    torch.library.opcheck(operators.convolve_backward.operator, (*inputs, grad, *about))
    moving = [torch.randn_like(x) for x in inputs]
    still = [x.detach() for x in (*inputs, grad)]  # there is no further derivative
    torch.library.opcheck(operators.convolve_double_backward.operator, (*still, *moving, *about))


def test_auto_takes_it_on_cuda_and_not_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = load_registry().kernels
    for device, chosen in (("cpu", "reference"), ("cuda", "triton")):
        ops = Ops(kernels, device=device)
        ops.make(NEQUIP_CONVOLUTION, SMALL)
        assert ops.report[NEQUIP_CONVOLUTION]["chosen"] == chosen
    assert refuses(SMALL, torch.float32, CUDA) is None
    monkeypatch.setattr(make, "TERMS", 3)
    assert "and a generated kernel at most 3" in str(refuses(SMALL, torch.float32, CUDA))


def test_a_tensor_of_another_shape_is_refused() -> None:
    graph = random_graph(3, (2,))
    inputs = [torch.randn(shape) for shape in convolution_shapes(SMALL, graph).values()]
    kernel = make_convolution(SMALL, torch.float32, CPU)
    kernel(*inputs, graph)
    for n in range(3):
        wrong = [x[:, :-1] if m == n else x for m, x in enumerate(inputs)]
        with pytest.raises(ValueError, match="expected rows of"):
            kernel(*wrong, graph)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        kernel(inputs[0], inputs[1].double(), inputs[2], graph)


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = operators.reference.double_backward

    def wrong(*given: object) -> tuple[torch.Tensor, ...]:
        of_grad, of_h, of_harmonics, of_weights = exact(*given)  # type: ignore[arg-type]
        return of_grad, of_h, of_harmonics * (1 + 1e-10), of_weights

    monkeypatch.setattr(operators.reference, "double_backward", wrong)
    with pytest.raises(CheckError, match="second by harmonics"):
        check_kernel("triton", SMALL, torch.float64, CPU)
