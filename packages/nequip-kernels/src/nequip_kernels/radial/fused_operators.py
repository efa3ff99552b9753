"""nequip.radial_convolution/1 without weights in memory as operators of torch's dispatcher, for inference.

On CUDA they launch the kernels of `nequip_kernels.radial.fused_generate`; torch.compile and AOTInductor see the
launches themselves. On the CPU they compute the same with weights in memory. There is a first derivative by all but the
matrix, and no second: who asks for another is told so.

``transposed`` is the matrix as the forward product reads it. ``spec`` is the text of
`nequip_kernels.radial.fused_kernels.describe`.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
from typing import Any

from torch import Tensor

from nequip_core.errors import ConfigError
from nequip_kernels.convolution import reference
from nequip_kernels.launch import launched, like
from nequip_kernels.operator import operator
from nequip_kernels.radial.fused_kernels import kernels_of
from nequip_kernels.wanted import wanted


@operator("nequip_kernels::radial_fused")
def radial_fused(
    h: Tensor,
    harmonics: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    transposed: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> Tensor:
    """Messages summed to their centres; see nequip_core.ops.contracts."""
    kernels = kernels_of(spec)
    if launched(h):
        return kernels.forward(h, harmonics, hidden, transposed, neighbor, row_ptr)
    return reference.forward(kernels.table, h, harmonics, hidden @ matrix, neighbor, row_ptr)


@operator("nequip_kernels::radial_fused_backward")
def radial_fused_backward(
    h: Tensor,
    harmonics: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    transposed: Tensor,
    grad: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of sum(grad * out) by h, harmonics and hidden."""
    kernels, graph = kernels_of(spec), (neighbor, row_ptr, by_neighbor, neighbor_ptr)
    if launched(h):
        return kernels.backward(h, harmonics, hidden, matrix, transposed, grad, *graph)
    *others, by_weights = reference.backward(kernels.table, h, harmonics, hidden @ matrix, grad, *graph)
    return others[0], others[1], by_weights @ matrix.mT


# Shapes


def _forward_shapes(h: Tensor, *rest: Any) -> Tensor:
    return h.new_empty(h.shape[0], kernels_of(rest[-1]).table.dim_out)


def _backward_shapes(h: Tensor, harmonics: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return like(h), like(harmonics), like(hidden)


radial_fused.register_fake(_forward_shapes)
radial_fused_backward.register_fake(_backward_shapes)


# Derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    if wanted(ctx, 3, 4):
        raise ConfigError(NO_DERIVATIVE.format(what="derivative by the matrix"))
    h, harmonics, hidden, matrix, transposed, *graph = ctx.saved_tensors
    inputs = h, harmonics, hidden, matrix.detach(), transposed.detach()
    return *radial_fused_backward(*inputs, grad, *graph, ctx.spec), *(None,) * 7


def _differentiate_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    raise ConfigError(NO_DERIVATIVE.format(what="second derivative"))


NO_DERIVATIVE = (
    "kernels: 'triton_fused' of nequip.radial_convolution/1 has no {what}: it is for inference. Train with auto, or "
    "name another kernel."
)

radial_fused.register_autograd(_differentiate, setup_context=_keep)
radial_fused_backward.register_autograd(_differentiate_backward, setup_context=_keep)
