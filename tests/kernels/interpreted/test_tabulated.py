"""The kernels of convolutions with weights from a table, run by Triton's interpreter: to 1e-12 in float64."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.tables import check, spec_of

# NumPy 2.3 has much to say about how Triton 3.6 uses it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CPU = torch.device("cpu")


@pytest.mark.parametrize(("l_max", "channels", "parity"), [(1, 5, True), (2, 3, False), (1, 70, False)])
def test_value_and_first_derivative(l_max: int, channels: int, parity: bool) -> None:
    """One block of channels, or two."""
    check(spec_of(l_max, channels, parity=parity), torch.float64, CPU, atoms=3, lengths=(5, 0, 2))


def test_float32() -> None:
    check(spec_of(1, 4), torch.float32, CPU, atoms=2, lengths=(9, 1))


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (2, (0,))], ids=["no atoms", "no edges"])
def test_nothing(atoms: int, lengths: tuple[int, ...]) -> None:
    check(spec_of(1, 4), torch.float64, CPU, atoms=atoms, lengths=lengths)
