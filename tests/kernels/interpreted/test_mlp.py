"""The kernels of networks of scalars, run by Triton's interpreter, against the reference: to 1e-12 in float64."""

from __future__ import annotations

import pytest
import torch

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_core.ops.mlp import make_mlp as reference
from nequip_core.testing.kernels import check_kernel, mlp_shapes
from nequip_kernels.mlp.make import make_mlp

# NumPy 2.3 has much to say about how Triton 3.6 uses it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CPU = torch.device("cpu")

SPECS = {
    "one hidden layer, three inputs": ScalarMLPSpec((33, 5, 17), (37,), (35, 33, 2), "silu"),
    "two of three passed on": ScalarMLPSpec((33, 5, 17), (37,), (35, 3), "silu", passes=2),
    "all passed on, linear": ScalarMLPSpec((7, 33), (), (34, 5), "silu", passes=2),
    "one number out": ScalarMLPSpec((32,), (3,), (1,), "silu"),
    "two hidden layers": ScalarMLPSpec((3, 40), (33, 64), (40,), "mish"),
    "three hidden layers": ScalarMLPSpec((1, 2), (5, 35, 7), (32,), "gelu"),
    "linear": ScalarMLPSpec((7, 33), (), (34, 5), "silu"),
    "no nonlinearity": ScalarMLPSpec((9,), (12,), (5,), "none"),
}


@pytest.mark.parametrize("name", SPECS)
def test_value_first_and_second_derivative(name: str) -> None:
    spec = SPECS[name]
    deviations = check_kernel("triton", spec, torch.float64, CPU, seed=1, atoms=3, lengths=(33, 0, 2))
    assert len(deviations) == 2 + 2 * (len(spec.inputs) + spec.layers)


@pytest.mark.parametrize("name", ["one hidden layer, three inputs", "linear"])
def test_layer_by_layer(name: str) -> None:
    """Sums over rows in parts, some of which are empty."""
    check_kernel("triton_layers", SPECS[name], torch.float64, CPU, seed=1, atoms=3, lengths=(33, 0, 2))
    check_kernel("triton_layers", SPECS[name], torch.float32, CPU, atoms=2, lengths=(9, 1))


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (1, (1,)), (1, (32,))], ids=["none", "one", "a whole tile"])
def test_few_rows(atoms: int, lengths: tuple[int, ...]) -> None:
    spec = ScalarMLPSpec((3, 2), (5,), (4,), "silu")
    check_kernel("triton", spec, torch.float64, CPU, atoms=atoms, lengths=lengths)


def test_float32() -> None:
    check_kernel("triton", SPECS["two hidden layers"], torch.float32, CPU, atoms=2, lengths=(9, 1))


def test_a_part_of_another_tensors_columns_is_read_in_place() -> None:
    spec = ScalarMLPSpec((4, 3), (5,), (2, 3), "silu")
    whole = torch.randn(6, 9, dtype=torch.float64)
    inputs = [whole[:, 1:5], whole[:, 6:].mT.contiguous().mT]  # columns side by side; and rows apart
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((7, 5), (5, 5))]
    mlp = make_mlp(spec, torch.float64, CPU)
    for one, other in zip(mlp(inputs, weights), mlp([x.contiguous() for x in inputs], weights), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["two of three passed on", "all passed on, linear"])
def test_gradients_of_what_is_passed_on_are_added(name: str) -> None:
    """In the kernel, where no second derivative is wanted; whether all, some or none of them are there."""
    spec = SPECS[name]
    shapes = mlp_shapes(spec, 35)
    leaves = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes.values()]
    mlps = make_mlp(spec, torch.float64, CPU), reference(spec, torch.float64, CPU)
    for left_out in ((), (1,), (len(spec.outputs),), range(len(spec.outputs)), range(1, len(spec.outputs) + 2)):
        found = []
        for mlp in mlps:
            torch.manual_seed(1)
            results = mlp(leaves[: len(spec.inputs)], leaves[len(spec.inputs) :])
            total = sum((one * torch.randn_like(one)).sum() for n, one in enumerate(results) if n not in left_out)
            found.append(torch.autograd.grad(total, leaves[: len(spec.inputs)], allow_unused=True))
        for one, other in zip(*found, strict=True):
            if one is None or other is None:
                assert one is other
            else:
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
