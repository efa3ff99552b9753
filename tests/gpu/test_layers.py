"""Networks layer by layer on a CUDA device: the reference's numbers, and the same ones each time."""

from __future__ import annotations

import pytest
import torch

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_core.testing.kernels import check_kernel
from nequip_kernels.benchmark import networks
from nequip_kernels.mlp.make import layers, make_mlp

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["first", "latent", "latent last", "read-out", "linear"])
def test_value_first_and_second_derivative(name: str, dtype: torch.dtype) -> None:
    check_kernel("triton_layers", networks(64)[name], dtype, CUDA, atoms=64, lengths=(86, 0, 71, 1))


def test_sums_over_rows_are_repeatable_and_as_exact_as_float32() -> None:
    """Of 400,000 rows, against float64 and beside torch's own product."""
    from nequip_kernels.mlp.operators import mlp_by_matrix

    spec = layers(ScalarMLPSpec((128, 64), (), (192,), "none"))[0]
    made = make_mlp(spec, torch.float32, CUDA)
    x, y, g = (torch.randn(400_000, width, device=CUDA) for width in (128, 64, 192))
    found, again = (mlp_by_matrix([x, y], [g], made.texts[0]) for _ in range(2))
    assert torch.equal(found, again)
    both = torch.cat([x, y], dim=1)
    exact = spec.alphas[0] * (both.double().mT @ g.double())
    torch.set_float32_matmul_precision("highest")
    plain = spec.alphas[0] * (both.mT @ g)
    ours, theirs = ((one - exact).square().mean().sqrt() for one in (found, plain))
    print(f"errors of sums over rows: ours {float(ours):.2e}, torch's {float(theirs):.2e}")
    assert ours < 2 * theirs
