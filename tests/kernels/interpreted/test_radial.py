"""nequip.radial_convolution/1 in parts, by the convolution's kernels in Triton's interpreter: to 1e-12 in float64."""

from __future__ import annotations

import pytest
import torch

from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import ConvolutionSpec, RadialConvolutionSpec
from nequip_core.testing.kernels import check_kernel
from nequip_kernels.radial import parts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SPEC = RadialConvolutionSpec(
    ConvolutionSpec(Irreps([(SCALAR, 3), (Irrep(1, -1), 2)]), 1, True, (SCALAR, Irrep(1, -1))), width=4
)


@pytest.mark.parametrize("edges", [2, 4, 100])
def test_value_first_and_second_derivative(monkeypatch: pytest.MonkeyPatch, edges: int) -> None:
    """Atoms begin in one part and end in another."""
    monkeypatch.setattr(parts, "LARGEST_WEIGHTS", edges * SPEC.convolution.num_weights * 8)
    deviations = check_kernel("triton", SPEC, torch.float64, torch.device("cpu"), seed=2, atoms=3, lengths=(3, 0, 2))
    assert len(deviations) == 10


def test_no_edges() -> None:
    check_kernel("triton", SPEC, torch.float64, torch.device("cpu"), atoms=2, lengths=(0,))
