"""A chain that passes its factors on: their gradients meet within its derivative.

An operator of torch's dispatcher may not give a tensor that it was given; a function of autograd may, and no number
moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nequip_kernels.chain.operators import chain, differentiate


def passing(
    factors: Tensor,
    harmonics: Tensor,
    environments: Sequence[Tensor],
    path_weights: Sequence[Tensor],
    row_ptr: Tensor,
    text: str,
) -> list[Tensor]:
    """What the chain gives, and behind it the factors."""
    tensors = factors, harmonics, *environments, *path_weights
    return list(_Passing.apply(*tensors, row_ptr, text))  # type: ignore[no-untyped-call]


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, row_ptr, ctx.text = arguments  # tensors come first, so that `reached` may count them
        ctx.save_for_backward(row_ptr, *tensors)
        ctx.set_materialize_grads(False)
        factors = tensors[0]
        return *chain(*_around(tensors, row_ptr, ctx.text)), factors.view_as(factors)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        row_ptr, *tensors = ctx.saved_tensors
        layers = (len(tensors) - 2) // 2
        by_weights = [None] * (layers + 2)  # by pointers and text neither
        *own, of_factors = given
        if all(one is None for one in own):
            return of_factors, *[None] * (1 + layers), *by_weights
        of_path_weights = range(2 + layers, 2 + 2 * layers)
        return *differentiate(ctx, of_path_weights, _around(tensors, row_ptr, ctx.text), given), *by_weights


def _around(tensors: Sequence[Tensor], row_ptr: Tensor, text: str) -> tuple[Any, ...]:
    """The arguments of `nequip_kernels.chain.operators.chain`."""
    factors, harmonics, *rest = tensors
    layers = len(rest) // 2
    return factors, harmonics, list(rest[:layers]), list(rest[layers:]), row_ptr, text
