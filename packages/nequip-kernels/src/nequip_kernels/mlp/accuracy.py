"""Whether products of three TF32 products are as good as float32 ones: measured where a model is built on a GPU.

A kernel may have errors of at most twice those of torch's float32 products (cuBLAS, without TF32), both against float64
on the same inputs, root mean square and largest, of the value and of the derivative by inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_kernels.blocks import architecture_of
from nequip_kernels.mlp import reference
from nequip_kernels.mlp.kernels import describe
from nequip_kernels.mlp.operators import mlp, mlp_backward, mlp_pack

FACTOR = 2.0
ROWS = 4096


class Errors(NamedTuple):
    """Against float64, as a part of the root mean square of the numbers.

    Attributes:
        rms: root mean square.
        largest: of all numbers.
    """

    rms: float
    largest: float


class Comparison(NamedTuple):
    """Of one result: value or derivative.

    Attributes:
        kernel: errors of the kernel.
        products: of torch's float32 products.
    """

    kernel: Errors
    products: Errors

    def good(self) -> bool:
        """Whether the kernel may serve."""
        return all(ours <= FACTOR * theirs for ours, theirs in zip(self.kernel, self.products, strict=True))


def reason(spec: ScalarMLPSpec, device: torch.device) -> str | None:
    """Why the kernels are not good enough; None: they are."""
    for name, found in compare(spec, device).items():
        if not found.good():
            return (
                f"errors of the {name} {found.kernel.rms:.1e} (rms) and {found.kernel.largest:.1e} (largest), more "
                f"than {FACTOR:g} times those of float32 products, {found.products.rms:.1e} and "
                f"{found.products.largest:.1e}"
            )
    return None


@cache
def compare(spec: ScalarMLPSpec, device: torch.device, seed: int = 0) -> dict[str, Comparison]:
    """Errors of value and derivative by inputs, by name, for normal inputs and weights as a new network has."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)

    inputs = [normal(ROWS, width) for width in spec.inputs]
    weights = [normal(*spec.widths[n : n + 2]) for n in range(spec.layers)]
    grads = [normal(ROWS, width) for width in spec.outputs]
    text = describe(spec, architecture_of(device), torch.float32)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        products = _results(spec, inputs, weights, grads)
    finally:
        torch.set_float32_matmul_precision(precision)
    exact = _results(spec, [x.double() for x in inputs], [w.double() for w in weights], [g.double() for g in grads])
    packed = mlp_pack(weights, text)
    ours = [
        torch.cat(one, dim=1)
        for one in (mlp(inputs, weights, packed, text), mlp_backward(inputs, weights, packed, grads, text))
    ]
    return {
        name: Comparison(_errors(one, truth), _errors(other, truth))
        for name, one, other, truth in zip(("value", "derivative"), ours, products, exact, strict=True)
    }


def _results(
    spec: ScalarMLPSpec, inputs: Sequence[Tensor], weights: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    value, derivative = reference.forward(spec, inputs, weights), reference.backward(spec, inputs, weights, grads)
    return [torch.cat(value, dim=1), torch.cat(derivative, dim=1)]


def _errors(received: Tensor, exact: Tensor) -> Errors:
    deviation = (received.double() - exact) / exact.square().mean().sqrt()
    return Errors(float(deviation.square().mean().sqrt()), float(deviation.abs().max()))
