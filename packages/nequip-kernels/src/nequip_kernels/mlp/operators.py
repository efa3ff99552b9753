"""scalar_mlp/1 as operators of torch's dispatcher: mlp_pack, and mlp -> mlp_backward.

mlp_backward_and_add is mlp_backward for inputs that were passed on (`nequip_kernels.mlp.passing`).

On CUDA an operator launches one kernel; torch.compile and AOTInductor see the launch itself. On the CPU it is what
`nequip_kernels.mlp.reference` computes. The derivative by weights, and the derivatives of mlp_backward, are plain
products of matrices on every device: training, which needs them, takes the reference (see `nequip_core.nn.mlp`).

``weights`` and ``packed`` are the same numbers, the second as kernels read them. ``spec`` is the text of
`nequip_kernels.mlp.kernels.describe`.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
import itertools
from typing import Any

import torch
from torch import Tensor

from nequip_kernels.launch import launched, like
from nequip_kernels.mlp import reference
from nequip_kernels.mlp.kernels import kernels_of
from nequip_kernels.operator import operator
from nequip_kernels.wanted import reached


@operator("nequip_kernels::mlp_pack")
def mlp_pack(weights: list[Tensor], spec: str) -> Tensor:
    """The weights as kernels read them; nothing on the CPU. Has no derivative of its own."""
    kernels = kernels_of(spec)
    return kernels.pack(weights) if launched(weights[0]) else weights[0].new_empty(0)


@operator("nequip_kernels::mlp")
def mlp(inputs: list[Tensor], weights: list[Tensor], packed: Tensor, spec: str) -> list[Tensor]:
    """The last layer's result; see nequip_core.ops.contracts."""
    kernels = kernels_of(spec)
    if launched(packed):
        return kernels.forward(inputs, packed)
    return _copies(reference.forward(kernels.spec, inputs, weights))


@operator("nequip_kernels::mlp_backward")
def mlp_backward(
    inputs: list[Tensor], weights: list[Tensor], packed: Tensor, grads: list[Tensor], spec: str
) -> list[Tensor]:
    """Derivatives of the sum of grads times outputs by the inputs."""
    kernels = kernels_of(spec)
    if launched(packed):
        return kernels.backward(inputs, packed, grads)
    return _copies(reference.backward(kernels.spec, inputs, weights, grads))


@operator("nequip_kernels::mlp_backward_and_add")
def mlp_backward_and_add(
    inputs: list[Tensor], weights: list[Tensor], packed: Tensor, grads: list[Tensor], passed: list[Tensor], spec: str
) -> list[Tensor]:
    """Derivatives by the inputs, to which the gradients of those that were passed on are added. Has no derivative."""
    kernels = kernels_of(spec)
    if launched(packed):
        return kernels.backward(inputs, packed, grads, passed)
    by_inputs = reference.backward(kernels.spec, inputs, weights, grads)
    sums = [one + more for one, more in zip(by_inputs, passed, strict=False)]
    return [*sums, *_copies(by_inputs[len(passed) :])]


@operator("nequip_kernels::mlp_by_matrix")
def mlp_by_matrix(inputs: list[Tensor], grads: list[Tensor], spec: str) -> Tensor:
    """Of a single layer: the derivative of the sum of grads times outputs by its matrix."""
    kernels = kernels_of(spec)
    if launched(inputs[0]):
        return kernels.by_matrix(inputs, grads)
    return reference.by_matrix(kernels.spec, inputs, grads)


def _copies(parts: list[Tensor]) -> list[Tensor]:
    """Torch lets no operator give two views of one tensor. Of one row, contiguous() would be a view."""
    return [part.clone(memory_format=torch.contiguous_format) for part in parts]


# Shapes


def _pack_shapes(weights: list[Tensor], spec: str) -> Tensor:
    return weights[0].new_empty(kernels_of(spec).packed_length if launched(weights[0]) else 0)


def _mlp_shapes(inputs: list[Tensor], weights: list[Tensor], packed: Tensor, spec: str) -> list[Tensor]:
    return [inputs[0].new_empty(inputs[0].shape[0], width) for width in kernels_of(spec).spec.outputs]


def _backward_shapes(inputs: list[Tensor], *rest: Any) -> list[Tensor]:
    return [like(one) for one in inputs]


def _by_matrix_shapes(inputs: list[Tensor], grads: list[Tensor], spec: str) -> Tensor:
    widths = kernels_of(spec).spec.widths
    return inputs[0].new_empty(widths[0], widths[-1])


mlp_by_matrix.register_fake(_by_matrix_shapes)
mlp_pack.register_fake(_pack_shapes)
mlp.register_fake(_mlp_shapes)
mlp_backward.register_fake(_backward_shapes)
mlp_backward_and_add.register_fake(_backward_shapes)


# Derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weights, packed, *grads, ctx.text = inputs
    ctx.lengths = [len(x), len(weights), *map(len, grads)]
    ctx.save_for_backward(*x, *weights, *itertools.chain(*grads), packed)
    # An absent gradient stays absent: zeros of that size would be read and written for nothing.
    ctx.set_materialize_grads(False)


def _kept(ctx: Any) -> tuple[list[list[Tensor]], Tensor]:
    """The lists of tensors, and the packed weights."""
    *tensors, packed = ctx.saved_tensors
    rest = iter(tensors)
    return [list(itertools.islice(rest, length)) for length in ctx.lengths], packed


def _wants(ctx: Any) -> tuple[bool, bool]:
    """Whether the derivatives by inputs and by weights are used."""
    inputs, weights, *_ = ctx.lengths
    return reached(ctx, range(inputs)), reached(ctx, range(inputs, inputs + weights))


def _or_zeros(given: list[Tensor | None], of_shapes: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if one is None else one for one, x in zip(given, of_shapes, strict=True)]


def _differentiate_mlp(ctx: Any, given: list[Tensor | None]) -> tuple[Any, ...]:
    (inputs, weights), packed = _kept(ctx)
    of_inputs: list[Any] = [None] * len(inputs)
    of_weights: list[Any] = [None] * len(weights)
    if any(one is not None for one in given):
        grads = _or_zeros(given, _mlp_shapes(inputs, weights, packed, ctx.text))
        by_inputs, by_weights = _wants(ctx)
        if by_inputs:
            of_inputs = mlp_backward(inputs, weights, packed, grads, ctx.text)
        spec = kernels_of(ctx.text).spec
        if by_weights and not spec.hidden:
            of_weights = [mlp_by_matrix(inputs, grads, ctx.text)]
        elif by_weights:
            of_weights = reference.by_weights(spec, inputs, weights, grads)
    return of_inputs, of_weights, None, None


def _differentiate_backward(ctx: Any, directions: list[Tensor | None]) -> tuple[Any, ...]:
    (inputs, weights, grads), packed = _kept(ctx)
    of_inputs: list[Any] = [None] * len(inputs)
    of_weights: list[Any] = [None] * len(weights)
    of_grads: list[Any] = [None] * len(grads)
    spec = kernels_of(ctx.text).spec
    if any(one is not None for one in directions) and not spec.hidden:
        # <directions, grads W^T> is what the layer makes of the directions, times grads.
        moving = _or_zeros(directions, inputs)
        of_grads = mlp(moving, weights, packed, ctx.text)
        if _wants(ctx)[1]:
            of_weights = [mlp_by_matrix(moving, grads, ctx.text)]
    elif any(one is not None for one in directions):
        _, by_weights = _wants(ctx)
        of_grads, of_inputs, of_weights = reference.double_backward(
            spec, inputs, weights, grads, _or_zeros(directions, inputs), with_weights=by_weights
        )
    return of_inputs, of_weights, None, of_grads, None


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.count = len(inputs[0])
    ctx.set_materialize_grads(False)


def _differentiate_pack(ctx: Any, _: Any) -> tuple[Any, ...]:
    """The networks' own derivatives by weights are all of it."""
    return [None] * ctx.count, None


def _keep_sums(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, grads, ctx.text = inputs
    ctx.lengths = [len(x), len(grads)]
    ctx.save_for_backward(*x, *grads)


def _differentiate_sums(ctx: Any, to_matrix: Tensor) -> tuple[Any, ...]:
    """Of <to_matrix, x^T grads>: each of both times the matrix, the one transposed."""
    spec = kernels_of(ctx.text).spec
    inputs, grads = ctx.saved_tensors[: ctx.lengths[0]], ctx.saved_tensors[ctx.lengths[0] :]
    return reference.backward(spec, inputs, [to_matrix], grads), reference.forward(spec, inputs, [to_matrix]), None


mlp_by_matrix.register_autograd(_differentiate_sums, setup_context=_keep_sums)
mlp_pack.register_autograd(_differentiate_pack, setup_context=_keep_nothing)
mlp.register_autograd(_differentiate_mlp, setup_context=_keep)
mlp_backward.register_autograd(_differentiate_backward, setup_context=_keep)
