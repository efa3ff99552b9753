"""MLP, linear maps, self-connection, gate: formulas and equivariance of layouts."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn.math import normalize2mom

from nequip_core.nn.embedding import one_hot
from nequip_core.nn.gate import SILU_GAIN, TANH_GAIN, Gate
from nequip_core.nn.linear import EquivariantLinear, SelfConnection
from nequip_core.nn.mlp import MLP
from nequip_core.o3 import SCALAR, Irrep, Irreps

VECTOR, PSEUDO = Irrep(1, -1), Irrep(0, -1)


def test_mlp_scales_by_fan_in_and_gain() -> None:
    mlp = MLP([3, 5, 2])
    x = torch.randn(4, 3)
    hidden = torch.nn.functional.silu(x @ mlp.weights[0] / math.sqrt(3))
    torch.testing.assert_close(mlp(x), hidden @ mlp.weights[1] * math.sqrt(2 / 5))
    assert all(weight.abs().max() <= math.sqrt(3) for weight in mlp.weights)


def test_mlp_without_nonlinearity_is_linear() -> None:
    mlp = MLP([3, 5, 2], "none")
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(x), x @ mlp.weights[0] @ mlp.weights[1] / math.sqrt(15))


def test_linear_mixes_channels_only() -> None:
    irreps_in, irreps_out = Irreps([(SCALAR, 4), (VECTOR, 3)]), Irreps([(SCALAR, 2), (PSEUDO, 5), (VECTOR, 1)])
    linear = EquivariantLinear(irreps_in, irreps_out)
    assert str(linear.irreps_out) == "2x0e+1x1o"
    x = {SCALAR: torch.randn(2, 1, 4), VECTOR: torch.randn(2, 3, 3)}
    torch.testing.assert_close(linear(x)[VECTOR], x[VECTOR] @ linear.weights["1o"] / math.sqrt(3))


@pytest.mark.parametrize(("num_types", "dim"), [(1, 5), (2, 5), (9, 5), (1, 1), (3, 1)])
def test_self_connection_is_the_product_with_the_embedding(num_types: int, dim: int) -> None:
    irreps = Irreps([(SCALAR, 4), (VECTOR, 3)])
    module = SelfConnection(irreps, Irreps([(SCALAR, 2), (VECTOR, 2)]), num_types, dim)
    assert module.by_type == (num_types <= dim)
    embedding = torch.randn(num_types, dim)
    types = torch.arange(6) % num_types
    x = {irrep: torch.randn(6, irrep.dim, channels) for irrep, channels in irreps}
    out = module(x, embedding, one_hot(types, num_types, torch.float32))
    for irrep in (SCALAR, VECTOR):
        expected = torch.einsum("nku,nd,udv->nkv", x[irrep], embedding[types], module.weights[str(irrep)])
        torch.testing.assert_close(out[irrep], expected / math.sqrt(irreps.channels[irrep] * dim))


def test_gate_gains_are_e3nns() -> None:
    assert normalize2mom(torch.nn.functional.silu).cst == pytest.approx(SILU_GAIN, rel=1e-12)
    assert normalize2mom(torch.tanh).cst == pytest.approx(TANH_GAIN, rel=1e-12)


def test_gate() -> None:
    gate = Gate(Irreps([(SCALAR, 2), (PSEUDO, 3), (VECTOR, 4)]))
    assert str(gate.irreps_in) == "6x0e+3x0o+4x1o"
    x = {irrep: torch.randn(5, irrep.dim, channels) for irrep, channels in gate.irreps_in}
    out = gate(x)
    silu = SILU_GAIN * torch.nn.functional.silu(x[SCALAR])
    torch.testing.assert_close(out[SCALAR], silu[..., :2])
    torch.testing.assert_close(out[PSEUDO], TANH_GAIN * torch.tanh(x[PSEUDO]))
    torch.testing.assert_close(out[VECTOR], x[VECTOR] * silu[..., 2:])
