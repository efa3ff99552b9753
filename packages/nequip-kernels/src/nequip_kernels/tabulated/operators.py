"""nequip.tabulated_convolution/1 as operators of torch's dispatcher, for inference.

On CUDA they launch the kernels of `nequip_kernels.tabulated.generate`; torch.compile and AOTInductor see the launches
themselves. On the CPU they compute the same with weights in memory. There is a first derivative by features, harmonics
and fraction, and no other: who asks for one is told so.

``spec`` is the text of `nequip_kernels.tabulated.kernels.describe`.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
from typing import Any

from torch import Tensor

from nequip_core.errors import ConfigError
from nequip_core.ops.reference import of_table
from nequip_kernels.convolution import reference
from nequip_kernels.launch import launched, like
from nequip_kernels.operator import operator
from nequip_kernels.tabulated.kernels import kernels_of
from nequip_kernels.wanted import wanted


@operator("nequip_kernels::tabulated")
def tabulated(
    h: Tensor,
    harmonics: Tensor,
    place: Tensor,
    fraction: Tensor,
    table: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> Tensor:
    """Messages summed to their centres; see nequip_core.ops.contracts."""
    kernels = kernels_of(spec)
    if launched(h):
        return kernels.forward(h, harmonics, place, fraction, table, neighbor, row_ptr)
    return reference.forward(kernels.table, h, harmonics, of_table(table, place, fraction), neighbor, row_ptr)


@operator("nequip_kernels::tabulated_backward")
def tabulated_backward(
    h: Tensor,
    harmonics: Tensor,
    place: Tensor,
    fraction: Tensor,
    table: Tensor,
    grad: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of sum(grad * out) by h, harmonics and fraction."""
    kernels, graph = kernels_of(spec), (neighbor, row_ptr, by_neighbor, neighbor_ptr)
    if launched(h):
        return kernels.backward(h, harmonics, place, fraction, table, grad, *graph)
    weights = of_table(table, place, fraction)
    d_h, d_harmonics, d_weights = reference.backward(kernels.table, h, harmonics, weights, grad, *graph)
    _, second, third, fourth = table.index_select(0, place).unbind(1)
    t = fraction.unsqueeze(1)
    return d_h, d_harmonics, (d_weights * (second + t * (2 * third + t * (3 * fourth)))).sum(1)


# Shapes


def _forward_shapes(h: Tensor, *rest: Any) -> Tensor:
    return h.new_empty(h.shape[0], kernels_of(rest[-1]).table.dim_out)


def _backward_shapes(h: Tensor, harmonics: Tensor, place: Tensor, fraction: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return like(h), like(harmonics), like(fraction)


tabulated.register_fake(_forward_shapes)
tabulated_backward.register_fake(_backward_shapes)


# Derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    if wanted(ctx, 4):
        raise ConfigError(NO_DERIVATIVE.format(what="derivative by the table"))
    h, harmonics, place, fraction, table, *graph = ctx.saved_tensors
    inputs = h, harmonics, place, fraction, table.detach(), grad
    d_h, d_harmonics, d_fraction = tabulated_backward(*inputs, *graph, ctx.spec)
    return d_h, d_harmonics, None, d_fraction, *(None,) * 6


def _differentiate_backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    raise ConfigError(NO_DERIVATIVE.format(what="second derivative"))


NO_DERIVATIVE = (
    "kernels: 'triton' of nequip.tabulated_convolution/1 has no {what}: it is for inference. Train with auto, or name "
    "another kernel."
)

tabulated.register_autograd(_differentiate, setup_context=_keep)
tabulated_backward.register_autograd(_differentiate_backward, setup_context=_keep)
