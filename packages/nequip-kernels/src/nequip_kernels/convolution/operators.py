"""nequip.convolution/1 as operators of torch's dispatcher: convolve -> convolve_backward -> convolve_double_backward.

On CUDA an operator launches one kernel for each irrep of the features, and one that collects what belongs to the
neighbours; torch.compile and AOTInductor see the launches themselves. On the CPU it is what
`nequip_kernels.convolution.reference` computes. The third derivative does not exist.

``spec`` is the text of `nequip_kernels.convolution.kernels.describe`.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
from typing import Any

import torch
from torch import Tensor

from nequip_kernels.convolution import reference
from nequip_kernels.convolution.kernels import kernels_of
from nequip_kernels.launch import launched, like
from nequip_kernels.operator import operator


@operator("nequip_kernels::convolve")
def convolve(
    h: Tensor,
    harmonics: Tensor,
    weights: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> Tensor:
    """Messages summed to their centres; see nequip_core.ops.contracts."""
    kernels, inputs = kernels_of(spec), (h, harmonics, weights, neighbor, row_ptr)
    return kernels.forward(*inputs) if launched(h) else reference.forward(kernels.table, *inputs)


@operator("nequip_kernels::convolve_backward")
def convolve_backward(
    h: Tensor,
    harmonics: Tensor,
    weights: Tensor,
    grad: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of sum(grad * out) by h, harmonics and weights."""
    kernels = kernels_of(spec)
    inputs = h, harmonics, weights, grad, neighbor, row_ptr, by_neighbor, neighbor_ptr
    return kernels.backward(*inputs) if launched(h) else reference.backward(kernels.table, *inputs)


@operator("nequip_kernels::convolve_double_backward")
def convolve_double_backward(
    h: Tensor,
    harmonics: Tensor,
    weights: Tensor,
    grad: Tensor,
    to_h: Tensor,
    to_harmonics: Tensor,
    to_weights: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of the results of `convolve_backward`, times ``to_...``, summed: by grad, h, harmonics, weights."""
    kernels, about_graph = kernels_of(spec), (neighbor, row_ptr, by_neighbor, neighbor_ptr)
    inputs = (h, harmonics, weights, grad, to_h, to_harmonics, to_weights, *about_graph)
    return kernels.double_backward(*inputs) if launched(h) else reference.double_backward(kernels.table, *inputs)


# Shapes


def _convolve_shapes(h: Tensor, *rest: Any) -> Tensor:
    return h.new_empty(h.shape[0], kernels_of(rest[-1]).table.dim_out)


def _backward_shapes(h: Tensor, harmonics: Tensor, weights: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return like(h), like(harmonics), like(weights)


def _double_backward_shapes(
    h: Tensor, harmonics: Tensor, weights: Tensor, grad: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return like(grad), like(h), like(harmonics), like(weights)


convolve.register_fake(_convolve_shapes)
convolve_backward.register_fake(_backward_shapes)
convolve_double_backward.register_fake(_double_backward_shapes)


# Derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)
    # An absent gradient stays absent: zeros of that size would be read and written for nothing.
    ctx.set_materialize_grads(False)


def _differentiate_convolve(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    h, harmonics, weights, *graph = ctx.saved_tensors
    return *convolve_backward(h, harmonics, weights, grad, *graph, ctx.spec), *(None,) * 5


def _differentiate_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    if all(one is None for one in directions):
        return (None,) * 9
    h, harmonics, weights, grad, *graph = ctx.saved_tensors
    moving = [
        torch.zeros_like(still) if one is None else one
        for one, still in zip(directions, (h, harmonics, weights), strict=True)
    ]
    of_grad, *of_inputs = convolve_double_backward(h, harmonics, weights, grad, *moving, *graph, ctx.spec)
    return *of_inputs, of_grad, *(None,) * 5


convolve.register_autograd(_differentiate_convolve, setup_context=_keep)
convolve_backward.register_autograd(_differentiate_backward, setup_context=_keep)
