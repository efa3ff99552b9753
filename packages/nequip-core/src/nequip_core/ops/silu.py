"""silu, whose derivatives torch (2.13) takes from some 20 operators where the first is differentiated again; here 9."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nequip_core.ops.promises import vectors_are_differentiated_once, weights_are_constant


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    if vectors_are_differentiated_once() and not weights_are_constant():
        of_training: Tensor = _SiLU.apply(x)  # type: ignore[no-untyped-call]
        return of_training
    return torch.nn.functional.silu(x)


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _FirstDerivative.apply(grads[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class _FirstDerivative(torch.autograd.Function):
    """grad silu'(x)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        result: Tensor = torch.ops.aten.silu_backward.default(grad, x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad, x = ctx.saved_tensors
        of_grad = torch.ops.aten.silu_backward.default(direction, x)
        # silu'' = s (1 - s) (2 + x (1 - 2 s)), s = sigmoid(x)
        s = torch.sigmoid(x)
        curvature = torch.rsub(s, 1, alpha=2).mul_(x).add_(2).mul_(grad).mul_(direction)
        return of_grad, torch.ops.aten.sigmoid_backward.default(curvature, s)
