"""nequip.radial_convolution/1 as operators of torch's dispatcher, which make the weights wherever they need them.

    radial_convolve -> radial_convolve_backward -> radial_convolve_double_backward

Each is one call to torch's compilers: how often it launches the kernels of the convolution depends on the number of
edges (`nequip_kernels.radial.parts`). The third derivative does not exist.

``spec`` is what `written` makes of the text of `nequip_kernels.convolution.kernels.describe`.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
import base64
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nequip_kernels.convolution.kernels import kernels_of
from nequip_kernels.launch import like
from nequip_kernels.operator import operator
from nequip_kernels.radial import parts
from nequip_kernels.radial.parts import Edges
from nequip_kernels.wanted import wanted


def written(text: str) -> str:
    """A text in letters that Inductor can write between quotes, in C++ too."""
    return base64.urlsafe_b64encode(text.encode()).decode()


@cache
def read(spec: str) -> str:
    """The inverse of `written`."""
    return base64.urlsafe_b64decode(spec).decode()


@operator("nequip_kernels::radial_convolve", opaque=True)
def radial_convolve(
    h: Tensor,
    harmonics: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> Tensor:
    """Messages summed to their centres; see nequip_core.ops.contracts."""
    edges = Edges(harmonics, hidden, neighbor, row_ptr, by_neighbor, neighbor_ptr)
    return parts.forward(h, matrix, edges, read(spec))


@operator("nequip_kernels::radial_convolve_backward", opaque=True)
def radial_convolve_backward(
    h: Tensor,
    harmonics: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    grad: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    with_matrix: bool,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of sum(grad * out) by h, harmonics, hidden, and matrix: an empty tensor where it is not asked for."""
    edges = Edges(harmonics, hidden, neighbor, row_ptr, by_neighbor, neighbor_ptr)
    return parts.backward(h, matrix, grad, edges, read(spec), with_matrix=with_matrix)


@operator("nequip_kernels::radial_convolve_double_backward", opaque=True)
def radial_convolve_double_backward(
    h: Tensor,
    harmonics: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    grad: Tensor,
    to_h: Tensor,
    to_harmonics: Tensor,
    to_hidden: Tensor,
    to_matrix: Tensor | None,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of the results of the former, times ``to_...``, summed: by grad, h, harmonics, hidden, matrix."""
    edges = Edges(harmonics, hidden, neighbor, row_ptr, by_neighbor, neighbor_ptr)
    return parts.double_backward(h, matrix, grad, to_h, to_harmonics, to_hidden, to_matrix, edges, read(spec))


# Shapes


def _convolve_shapes(h: Tensor, *rest: Any) -> Tensor:
    return h.new_empty(h.shape[0], kernels_of(read(rest[-1])).table.dim_out)


def _backward_shapes(h: Tensor, harmonics: Tensor, hidden: Tensor, matrix: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, with_matrix, _ = rest
    return like(h), like(harmonics), like(hidden), like(matrix) if with_matrix else matrix.new_empty(0)


def _double_backward_shapes(
    h: Tensor, harmonics: Tensor, hidden: Tensor, matrix: Tensor, grad: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return like(grad), like(h), like(harmonics), like(hidden), like(matrix)


radial_convolve.register_fake(_convolve_shapes)
radial_convolve_backward.register_fake(_backward_shapes)
radial_convolve_double_backward.register_fake(_double_backward_shapes)


# Derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)
    # An absent gradient stays absent: it would be computed with for nothing.
    ctx.set_materialize_grads(False)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.with_matrix, spec = inputs
    _keep(ctx, (*tensors, spec), output)


def _differentiate_convolve(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    *inputs, neighbor, row_ptr, by_neighbor, neighbor_ptr = ctx.saved_tensors
    graph = neighbor, row_ptr, by_neighbor, neighbor_ptr
    # Forces do not ask for it: a product of matrices less.
    with_matrix = wanted(ctx, 3)
    *found, by_matrix = radial_convolve_backward(*inputs, grad, *graph, with_matrix, ctx.spec)
    return *found, by_matrix if with_matrix else None, *(None,) * 5


def _differentiate_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    if all(one is None for one in directions):
        return (None,) * 11
    *inputs, grad, neighbor, row_ptr, by_neighbor, neighbor_ptr = ctx.saved_tensors
    graph = neighbor, row_ptr, by_neighbor, neighbor_ptr
    *moving, to_matrix = directions
    given = [torch.zeros_like(x) if one is None else one for one, x in zip(moving, inputs[:3], strict=True)]
    of_grad, *of_inputs = radial_convolve_double_backward(
        *inputs, grad, *given, to_matrix if ctx.with_matrix else None, *graph, ctx.spec
    )
    return *of_inputs, of_grad, *(None,) * 6


radial_convolve.register_autograd(_differentiate_convolve, setup_context=_keep)
radial_convolve_backward.register_autograd(_differentiate_backward, setup_context=_keep_backward)
