"""The operators of a network of scalars in plain torch, with their derivatives written out.

What the operators do with tensors of the CPU, and everywhere what training needs besides: derivatives by weights and
second derivatives, which are products of matrices of hidden layers that are computed again.

Names: x_0 the inputs, z_n = x_n W_n, x_{n+1} = s(z_n); b_n the derivative of <grads, outputs> by z_n; W_n has its
alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_core.ops.mlp import NONLINEARITIES, ReferenceMLP


def forward(spec: ScalarMLPSpec, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """The last layer's result."""
    return list(ReferenceMLP(spec)(inputs, weights))[: len(spec.outputs)]


def backward(
    spec: ScalarMLPSpec, inputs: Sequence[Tensor], weights: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """Derivatives of <grads, outputs> by the inputs."""
    layers = Layers(spec, inputs, weights)
    b = layers.backward(grads)
    return _apart(b[0] @ layers.W[0].mT, spec.inputs)


def by_weights(
    spec: ScalarMLPSpec, inputs: Sequence[Tensor], weights: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """Derivatives of <grads, outputs> by the weights."""
    if not spec.hidden:
        return [by_matrix(spec, inputs, grads)]
    layers = Layers(spec, inputs, weights)
    return [alpha * (x.mT @ b) for alpha, x, b in zip(spec.alphas, layers.x, layers.backward(grads), strict=True)]


def by_matrix(spec: ScalarMLPSpec, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """Of a single layer, tensor by tensor: side by side they would be written once more, and the products are small."""
    blocks = [torch.cat([x.mT @ g for g in grads], dim=1) for x in inputs]
    return spec.alphas[0] * torch.cat(blocks)


def double_backward(
    spec: ScalarMLPSpec,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    directions: Sequence[Tensor],
    *,
    with_weights: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """Derivatives of <directions, `backward`>: by grads, inputs, weights.

    It is <grads, t> with t how the result moves when the inputs move along the directions, differentiated backwards.
    """
    layers = Layers(spec, inputs, weights)
    first, second = SLOPES[spec.nonlinearity]
    u = [torch.cat(list(directions), dim=1)]
    t: list[Tensor] = []
    for n, weight in enumerate(layers.W):
        if n:
            u.append(first(layers.z[n - 1]) * t[-1])
        t.append(u[n] @ weight)
    p = layers.backward(grads)
    q = torch.zeros_like(p[-1])
    of_weights: list[Tensor | None] = [None] * spec.layers
    for n in reversed(range(spec.layers)):
        if with_weights:
            of_weights[n] = spec.alphas[n] * (u[n].mT @ p[n] + layers.x[n].mT @ q)
        q = q @ layers.W[n].mT
        if n:
            z = layers.z[n - 1]
            q = q * first(z) + (p[n] @ layers.W[n].mT) * second(z) * t[n - 1]
    return _apart(t[-1], spec.outputs), _apart(q, spec.inputs), of_weights


def _apart(x: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """One tensor for each width."""
    return list(x.split_with_sizes(list(widths), dim=1))


class Layers:
    """What every layer reads and gives.

    Attributes:
        W: of each layer, with its alpha.
        x: what it reads.
        z: what it gives, of all but the last.
    """

    def __init__(self, spec: ScalarMLPSpec, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self.spec = spec
        self.W = [alpha * weight for alpha, weight in zip(spec.alphas, weights, strict=True)]
        self.x, self.z = [torch.cat(list(inputs), dim=1)], []
        for weight in self.W[:-1]:
            self.z.append(self.x[-1] @ weight)
            self.x.append(NONLINEARITIES[spec.nonlinearity](self.z[-1]))

    def backward(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """b of each layer."""
        first, _ = SLOPES[self.spec.nonlinearity]
        b = [torch.cat(list(grads), dim=1)]
        for weight, z in zip(reversed(self.W), reversed(self.z), strict=False):
            b.insert(0, (b[0] @ weight.mT) * first(z))
        return b


def _silu(z: Tensor) -> Tensor:
    f = torch.sigmoid(z)
    return f * (1 + z * (1 - f))


def _silu_second(z: Tensor) -> Tensor:
    f = torch.sigmoid(z)
    return f * (1 - f) * (2 + z * (1 - 2 * f))


def _gelu(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5))) + z * _gaussian(z)


def _gelu_second(z: Tensor) -> Tensor:
    return _gaussian(z) * (2 - z * z)


def _gaussian(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _mish(z: Tensor) -> Tensor:
    w = torch.tanh(torch.nn.functional.softplus(z))
    return w + z * (1 - w * w) * torch.sigmoid(z)


def _mish_second(z: Tensor) -> Tensor:
    w, f = torch.tanh(torch.nn.functional.softplus(z)), torch.sigmoid(z)
    slope = (1 - w * w) * f  # of w
    return 2 * slope + z * (slope * (1 - f) - 2 * w * slope * f)


SLOPES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (_silu, _silu_second),
    "gelu": (_gelu, _gelu_second),
    "mish": (_mish, _mish_second),
    "none": (torch.ones_like, torch.zeros_like),
}
"""First and second derivative of each nonlinearity."""
