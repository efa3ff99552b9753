"""Chains of contractions, run by Triton's interpreter, against the reference: to 1e-12 in float64."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.chains import chains, check

from nequip_core.ops.contracts import ChainSpec
from nequip_kernels.contraction.kernels import interpreted

# NumPy 2.3 has much to say about how Triton 3.6 uses it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CPU = torch.device("cpu")


def test_this_is_the_interpreter() -> None:
    assert interpreted()


@pytest.mark.parametrize("spec", chains(1, channels=5), ids=["scalars", "two layers"])
@pytest.mark.parametrize("degrees", [1, 2])
def test_value_and_first_derivative(spec: ChainSpec, degrees: int) -> None:
    check(spec, torch.float64, CPU, atoms=3, lengths=(5, 0, 2), degrees=degrees)


@pytest.mark.parametrize("spec", chains(2, layers=2, channels=70, coupled=False), ids=["scalars", "two layers"])
def test_two_blocks_of_channels(spec: ChainSpec) -> None:
    check(spec, torch.float64, CPU, atoms=2, lengths=(3, 1))


def test_float32() -> None:
    check(chains(1)[1], torch.float32, CPU, atoms=2, lengths=(9, 1))


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (2, (0,))], ids=["no atoms", "no edges"])
def test_nothing(atoms: int, lengths: tuple[int, ...]) -> None:
    for spec in chains(1):
        check(spec, torch.float64, CPU, atoms=atoms, lengths=lengths)
