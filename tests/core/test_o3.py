"""Irreps, Wigner tables and spherical harmonics against e3nn."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3 as e3nn_o3

from nequip_core.o3 import SCALAR, Irrep, Irreps, SphericalHarmonics, couplings, wigner_3j


def test_spherical_harmonics_are_e3nns() -> None:
    unit = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=1)
    expected = e3nn_o3.spherical_harmonics(list(range(5)), unit, normalize=False, normalization="component")
    torch.testing.assert_close(SphericalHarmonics(4)(unit), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("l_max", [0, 1, 3])
def test_spherical_harmonics_have_component_norm(l_max: int) -> None:
    unit = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1)
    assert SphericalHarmonics(l_max)(unit).square().sum(1) == pytest.approx([(l_max + 1) ** 2] * 5)


def test_wigner_3j_is_invariant() -> None:
    rotation = e3nn_o3.rand_matrix(dtype=torch.float64)
    d1, d2, d3 = (e3nn_o3.Irrep(degree, 1).D_from_matrix(rotation) for degree in (1, 2, 3))
    table = wigner_3j(1, 2, 3)
    torch.testing.assert_close(torch.einsum("ijk,ia,jb,kc->abc", table, d1, d2, d3), table, rtol=0, atol=1e-6)
    assert table.square().sum().item() == pytest.approx(1)


def test_split_and_join_are_inverse() -> None:
    irreps = Irreps([(SCALAR, 4), (Irrep(1, -1), 3), (Irrep(2, 1), 0), (Irrep(2, -1), 2)])
    assert str(irreps) == "4x0e+3x1o+2x2o"
    assert irreps.dim == 4 + 9 + 10
    rows = torch.randn(7, irreps.dim)
    blocks = irreps.split(rows)
    assert blocks[Irrep(1, -1)].shape == (7, 3, 3)
    # Channel fastest: the second component of the first channel lies one block of channels further.
    assert torch.equal(blocks[Irrep(1, -1)][:, 1, 0], rows[:, 4 + 3])
    assert torch.equal(irreps.join(blocks), rows)


def test_an_irrep_occurs_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        Irreps([(SCALAR, 1), (SCALAR, 2)])


def test_couplings_obey_triangle_and_parity() -> None:
    wanted = [Irrep(degree, p) for degree in range(4) for p in (1, -1)]
    assert couplings(Irrep(1, -1), 2, 1, wanted) == [Irrep(1, -1), Irrep(2, -1), Irrep(3, -1)]
    assert couplings(Irrep(1, -1), 1, -1, wanted) == [SCALAR, Irrep(1, 1), Irrep(2, 1)]
