"""The convolution's kernels, run by Triton's interpreter, against the reference: to 1e-12 in float64."""

from __future__ import annotations

import pytest
import torch

from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import ConvolutionSpec
from nequip_core.testing.kernels import check_kernel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CPU = torch.device("cpu")
BOTH = [tuple(Irrep(degree, p) for degree in range(l_max + 1) for p in (1, -1)) for l_max in range(4)]

SPECS = {
    "first layer": ConvolutionSpec(Irreps([(SCALAR, 3)]), 1, True, (SCALAR, Irrep(1, -1))),
    "channels differ, two blocks of them": ConvolutionSpec(
        Irreps([(SCALAR, 70), (Irrep(1, -1), 2)]), 1, True, (SCALAR, Irrep(1, 1), Irrep(1, -1))
    ),
    # 0o reaches no even scalar with harmonics of l = 0 only, so it has no path.
    "an irrep without paths, last layer": ConvolutionSpec(
        Irreps([(SCALAR, 2), (Irrep(0, -1), 3), (Irrep(1, -1), 4)]), 1, True, (SCALAR,)
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_value_first_and_second_derivative(name: str) -> None:
    deviations = check_kernel("triton", SPECS[name], torch.float64, CPU, seed=2, atoms=3, lengths=(3, 0, 2))
    assert len(deviations) == 8


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (2, (0,))], ids=["no atoms", "no edges"])
def test_nothing(atoms: int, lengths: tuple[int, ...]) -> None:
    check_kernel("triton", SPECS["first layer"], torch.float64, CPU, atoms=atoms, lengths=lengths)


def test_float32() -> None:
    check_kernel("triton", SPECS["first layer"], torch.float32, CPU, atoms=2, lengths=(9, 1))


@pytest.mark.slow
@pytest.mark.parametrize("l_max", [1, 2, 3])
@pytest.mark.parametrize("parity", [True, False], ids=["parity", "no parity"])
def test_all_kinds(l_max: int, parity: bool) -> None:
    wanted = BOTH[l_max] if parity else tuple(Irrep(degree, 1) for degree in range(l_max + 1))
    spec = ConvolutionSpec(Irreps((irrep, 2 + irrep.l) for irrep in wanted), l_max, parity, wanted)
    check_kernel("triton", spec, torch.float64, CPU, seed=l_max, atoms=3, lengths=(4, 0, 3))
