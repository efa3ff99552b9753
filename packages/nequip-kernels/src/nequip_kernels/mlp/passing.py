"""A network of scalars that passes inputs on: their gradients meet within its derivative.

An operator of torch's dispatcher may not give a tensor that it was given; a function of autograd may, and no number
moves. Where the derivative is itself to be differentiated, as in training, torch adds the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nequip_kernels.mlp import reference
from nequip_kernels.mlp.kernels import kernels_of
from nequip_kernels.mlp.operators import mlp, mlp_backward, mlp_backward_and_add
from nequip_kernels.wanted import reached


def passing(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], packed: Tensor, text: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The last layer's result, and the inputs that are passed on.

    Args:
        inputs: of the network.
        weights: of each layer.
        packed: the same, by `mlp_pack`.
        text: of `nequip_kernels.mlp.kernels.describe`.
    """
    spec = kernels_of(text).spec
    results: Sequence[Tensor] = _Passing.apply(*inputs, *weights, packed, text)  # type: ignore[no-untyped-call]
    return list(results[: len(spec.outputs)]), list(results[len(spec.outputs) :])


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, packed, text = arguments  # tensors come first, so that `reached` may count them
        ctx.text = text
        spec = kernels_of(text).spec
        inputs, weights = list(tensors[: len(spec.inputs)]), list(tensors[len(spec.inputs) :])
        ctx.save_for_backward(packed, *tensors)
        ctx.set_materialize_grads(False)
        passed = [one.view_as(one) for one in inputs[: spec.passes]]
        return *mlp(inputs, weights, packed, text), *passed

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        packed, *tensors = ctx.saved_tensors
        spec = kernels_of(ctx.text).spec
        count = len(spec.inputs)
        inputs, weights = list(tensors[:count]), list(tensors[count:])
        own, passed = given[: len(spec.outputs)], list(given[len(spec.outputs) :])
        by_inputs: list[Tensor | None] = [*passed, *[None] * (count - len(passed))]
        by_weights: list[Any] = [None] * len(weights)
        if any(one is not None for one in own):
            rows = inputs[0].shape[0]
            grads = [
                inputs[0].new_zeros(rows, width) if one is None else one
                for one, width in zip(own, spec.outputs, strict=True)
            ]
            if reached(ctx, range(count)):
                by_inputs = _by_inputs(inputs, weights, packed, grads, passed, ctx.text)
            if reached(ctx, range(count, len(tensors))):
                by_weights = reference.by_weights(spec, inputs, weights, grads)
        return *by_inputs, *by_weights, None, None


def _by_inputs(
    inputs: list[Tensor],
    weights: list[Tensor],
    packed: Tensor,
    grads: list[Tensor],
    passed: list[Tensor | None],
    text: str,
) -> list[Tensor | None]:
    there = [one for one in passed if one is not None]
    if len(there) == len(passed) and not torch.is_grad_enabled():
        return [*mlp_backward_and_add(inputs, weights, packed, grads, there, text)]
    by_inputs = mlp_backward(inputs, weights, packed, grads, text)
    more = [*passed, *[None] * (len(inputs) - len(passed))]
    return [one if other is None else one + other for one, other in zip(by_inputs, more, strict=True)]
