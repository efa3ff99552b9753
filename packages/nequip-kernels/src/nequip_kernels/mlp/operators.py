"""scalar_mlp/1 as operators of torch's dispatcher: mlp -> mlp_backward.

On CUDA an operator launches one kernel; torch.compile and AOTInductor see the launch itself. On the CPU it is what
`nequip_kernels.mlp.reference` computes. The derivative by weights, and the derivatives of mlp_backward, are plain
products of matrices on every device: training, which needs them, takes the reference (see `nequip_core.nn.mlp`).

``spec`` is the text of `nequip_kernels.mlp.kernels.describe`.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from nequip_kernels.launch import launched, like
from nequip_kernels.mlp import reference
from nequip_kernels.mlp.kernels import kernels_of
from nequip_kernels.wanted import reached


@triton_op("nequip_kernels::mlp", mutates_args=())
def mlp(inputs: list[Tensor], weights: list[Tensor], spec: str) -> Tensor:
    """The last layer's result; see nequip_core.ops.contracts."""
    kernels = kernels_of(spec)
    if launched(inputs[0]):
        return kernels.forward(inputs, weights)
    return reference.forward(kernels.spec, inputs, weights)


@triton_op("nequip_kernels::mlp_backward", mutates_args=())
def mlp_backward(inputs: list[Tensor], weights: list[Tensor], grad: Tensor, spec: str) -> list[Tensor]:
    """Derivatives of sum(grad * out) by the inputs."""
    kernels = kernels_of(spec)
    if launched(inputs[0]):
        return kernels.backward(inputs, weights, grad)
    return reference.backward(kernels.spec, inputs, weights, grad)


# Shapes


def _mlp_shapes(inputs: list[Tensor], weights: list[Tensor], spec: str) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[0], kernels_of(spec).spec.out)


def _backward_shapes(inputs: list[Tensor], weights: list[Tensor], grad: Tensor, spec: str) -> list[Tensor]:
    return [like(one) for one in inputs]


mlp.register_fake(_mlp_shapes)
mlp_backward.register_fake(_backward_shapes)


# Derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weights, *grad, ctx.text = inputs
    ctx.inputs, ctx.weights = len(x), len(weights)
    ctx.save_for_backward(*x, *weights, *grad)
    # An absent gradient stays absent: zeros of that size would be read and written for nothing.
    ctx.set_materialize_grads(False)


def _kept(ctx: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    tensors = list(ctx.saved_tensors)
    stop = ctx.inputs + ctx.weights
    return tensors[: ctx.inputs], tensors[ctx.inputs : stop], tensors[stop:]


def _differentiate_mlp(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    inputs, weights, _ = _kept(ctx)
    of_inputs: list[Any] = [None] * len(inputs)
    of_weights: list[Any] = [None] * len(weights)
    if grad is None:
        return of_inputs, of_weights, None
    if reached(ctx, range(len(inputs))):
        of_inputs = mlp_backward(inputs, weights, grad, ctx.text)
    if reached(ctx, range(len(inputs), len(inputs) + len(weights))):
        of_weights = reference.by_weights(kernels_of(ctx.text).spec, inputs, weights, grad)
    return of_inputs, of_weights, None


def _differentiate_backward(ctx: Any, directions: list[Tensor | None]) -> tuple[Any, ...]:
    inputs, weights, (grad,) = _kept(ctx)
    if all(one is None for one in directions):
        return [None] * len(inputs), [None] * len(weights), None, None
    moving = [torch.zeros_like(x) if one is None else one for one, x in zip(directions, inputs, strict=True)]
    of_grad, of_inputs, of_weights = reference.double_backward(
        kernels_of(ctx.text).spec,
        inputs,
        weights,
        grad,
        moving,
        with_weights=reached(ctx, range(len(inputs), len(inputs) + len(weights))),
    )
    return of_inputs, of_weights, of_grad, None


mlp.register_autograd(_differentiate_mlp, setup_context=_keep)
mlp_backward.register_autograd(_differentiate_backward, setup_context=_keep)
