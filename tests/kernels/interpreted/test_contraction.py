"""The contraction's kernels, run by Triton's interpreter, against the reference: to 1e-12 in float64."""

from __future__ import annotations

import pytest
import torch

from nequip_core.o3 import SCALAR, Irrep, couplings
from nequip_core.ops.contracts import ContractionSpec
from nequip_core.testing.kernels import check_kernel, contraction_shapes, random_graph
from nequip_kernels.contraction.kernels import interpreted
from nequip_kernels.contraction.make import make_contraction

# NumPy 2.3 has much to say about how Triton 3.6 uses it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CPU = torch.device("cpu")
HARMONICS = [tuple(Irrep(degree, (-1) ** degree) for degree in range(l_max + 1)) for l_max in range(5)]
BOTH = [tuple(Irrep(degree, p) for degree in range(l_max + 1) for p in (1, -1)) for l_max in range(5)]
REACHED = (SCALAR, Irrep(1, 1), Irrep(1, -1))
"""By a first layer of l_max 1."""


def test_this_is_the_interpreter() -> None:
    assert interpreted()


@pytest.mark.parametrize(
    ("spec", "degrees"),
    [
        (ContractionSpec(HARMONICS[1], REACHED, 1, 5, True, True, scalars_apart=True), 2),
        (ContractionSpec(HARMONICS[1], (SCALAR,), 1, 3, False, False), 1),
        (ContractionSpec(BOTH[1], HARMONICS[1], 1, 70, False, False), 2),  # two blocks of channels
        (ContractionSpec(HARMONICS[1], HARMONICS[1], 1, 70, True, False, scalars_apart=True), 2),
        (ContractionSpec(HARMONICS[2], HARMONICS[2], 2, 3, True, False), 3),
    ],
    ids=[
        *("first layer", "last layer, one weight for all degrees", "uncoupled, 70 channels"),
        *("scalars apart, 70 channels", "l_max 2"),
    ],
)
def test_value_first_and_second_derivative(spec: ContractionSpec, degrees: int) -> None:
    deviations = check_kernel("triton", spec, torch.float64, CPU, seed=1, atoms=3, lengths=(5, 0, 2), degrees=degrees)
    assert len(deviations) == (13 if spec.scalars_apart else 11)


def test_float32() -> None:
    spec = ContractionSpec(HARMONICS[1], REACHED, 1, 4, True, True)
    check_kernel("triton", spec, torch.float32, CPU, atoms=2, lengths=(9, 1))


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (2, (0,))], ids=["no atoms", "no edges"])
def test_nothing(atoms: int, lengths: tuple[int, ...]) -> None:
    spec = ContractionSpec(HARMONICS[1], (SCALAR,), 1, 2, True, True)
    check_kernel("triton", spec, torch.float64, CPU, atoms=atoms, lengths=lengths)


def test_inputs_need_not_be_contiguous() -> None:
    spec = ContractionSpec(HARMONICS[1], (SCALAR,), 1, 4, True, False)
    graph = random_graph(2, (3, 1))
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in contraction_shapes(spec, graph).values()]
    kernel = make_contraction(spec, torch.float64, CPU)
    expected, _ = kernel(*inputs, graph)
    apart = [torch.stack([x, x + 1], dim=-1)[..., 0] for x in inputs]
    assert not any(x.is_contiguous() for x in apart)
    received, _ = kernel(*apart, graph)
    assert torch.equal(received, expected)


@pytest.mark.slow
@pytest.mark.parametrize("factors", [True, False], ids=["first layer", "later layer"])
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "uncoupled"])
@pytest.mark.parametrize("l_max", [1, 2, 3])
@pytest.mark.parametrize("parity", [True, False], ids=["parity", "no parity"])
def test_all_kinds(l_max: int, parity: bool, coupled: bool, factors: bool) -> None:
    wanted = BOTH[l_max] if parity else HARMONICS[l_max]
    inputs = HARMONICS[l_max] if factors else wanted
    outputs = tuple(
        out
        for out in wanted
        if any(couplings(one, degree, (-1) ** degree, [out]) for one in inputs for degree in range(l_max + 1))
    )
    spec = ContractionSpec(inputs, outputs, l_max, 3, coupled, factors, scalars_apart=True)
    check_kernel("triton", spec, torch.float64, CPU, seed=l_max, atoms=3, lengths=(5, 0, 3))
