"""allegro.chain/1 as operators of torch's dispatcher, which know their first derivatives.

    environment -> environment_backward      chain -> chain_backward

On CUDA an operator launches one kernel; torch.compile and AOTInductor see the launch itself. On the CPU it is what
`nequip_kernels.chain.reference` computes. There is no derivative by path weights, and no second one: chains are for
models that are not trained.

``spec`` is the text of `nequip_kernels.chain.kernels.describe`.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nequip_core.errors import InputError
from nequip_kernels.chain import reference
from nequip_kernels.chain.kernels import Kernels, kernels_of
from nequip_kernels.launch import launched, like
from nequip_kernels.operator import operator
from nequip_kernels.wanted import reached


@operator("nequip_kernels::environment")
def environment(env_weights: Tensor, harmonics: Tensor, row_ptr: Tensor, spec: str) -> Tensor:
    """Sums of weighted harmonics over the edges of each atom."""
    kernels = _kernels(spec, env_weights)
    if launched(env_weights):
        return kernels.environment(env_weights, harmonics, row_ptr)
    return reference.environment(kernels.tables[0], env_weights, harmonics, row_ptr)


@operator("nequip_kernels::environment_backward")
def environment_backward(
    env_weights: Tensor, harmonics: Tensor, grad: Tensor, row_ptr: Tensor, spec: str
) -> tuple[Tensor, Tensor]:
    """Derivatives of sum(grad * environment) by weights and harmonics."""
    kernels = _kernels(spec, env_weights)
    if launched(env_weights):
        return kernels.environment_backward(env_weights, harmonics, grad, row_ptr)
    return reference.environment_backward(kernels.tables[0], env_weights, harmonics, grad, row_ptr)


@operator("nequip_kernels::chain")
def chain(
    factors: Tensor,
    harmonics: Tensor,
    environments: list[Tensor],
    path_weights: list[Tensor],
    row_ptr: Tensor,
    spec: str,
) -> list[Tensor]:
    """What the last layer gives; see nequip_core.ops.contracts."""
    kernels = _kernels(spec, factors)
    inputs = factors, harmonics, environments, path_weights, row_ptr
    if launched(factors):
        return kernels.chain(*inputs)
    return reference.chain(kernels.tables, *inputs)


@operator("nequip_kernels::chain_backward")
def chain_backward(
    factors: Tensor,
    harmonics: Tensor,
    environments: list[Tensor],
    path_weights: list[Tensor],
    grads: list[Tensor],
    row_ptr: Tensor,
    spec: str,
) -> list[Tensor]:
    """Derivatives of the sum of grads times results by factors, harmonics and environments.

    The last gradient is that of factors that are passed on.
    """
    kernels = _kernels(spec, factors)
    inputs = factors, harmonics, environments, path_weights, grads, row_ptr
    if launched(factors):
        return kernels.chain_backward(*inputs)
    return reference.chain_backward(kernels.tables, *inputs, passes=kernels.spec.passes)


def _kernels(spec: str, of_degrees: Tensor) -> Kernels:
    return kernels_of(spec, int(of_degrees.shape[1]))  # never a symbol: other degrees are another kernel


# Shapes


def _environment_shapes(env_weights: Tensor, harmonics: Tensor, row_ptr: Tensor, spec: str) -> Tensor:
    return _kernels(spec, env_weights).of_atoms(env_weights, row_ptr)


def _environment_backward_shapes(env_weights: Tensor, harmonics: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return like(env_weights), like(harmonics)


def _chain_shapes(factors: Tensor, *rest: Any) -> list[Tensor]:
    return _kernels(rest[-1], factors).results(factors)


def _chain_backward_shapes(factors: Tensor, harmonics: Tensor, environments: list[Tensor], *rest: Any) -> list[Tensor]:
    return [like(one) for one in (factors, harmonics, *environments)]


environment.register_fake(_environment_shapes)
environment_backward.register_fake(_environment_backward_shapes)
chain.register_fake(_chain_shapes)
chain_backward.register_fake(_chain_backward_shapes)


# Derivatives


def _keep_environment(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.text = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _differentiate_environment(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    env_weights, harmonics, row_ptr = ctx.saved_tensors
    return *environment_backward(env_weights, harmonics, grad, row_ptr, ctx.text), None, None


def _keep_chain(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    factors, harmonics, environments, path_weights, row_ptr, ctx.text = inputs
    ctx.layers = len(environments)
    ctx.save_for_backward(factors, harmonics, row_ptr, *environments, *path_weights)
    ctx.set_materialize_grads(False)


def _differentiate_chain(ctx: Any, given: list[Tensor | None]) -> tuple[Any, ...]:
    nothing = [None] * ctx.layers
    if all(one is None for one in given):
        return None, None, nothing, nothing, None, None
    of_path_weights = range(2 + ctx.layers, 2 + 2 * ctx.layers)
    factors, harmonics, row_ptr, *tensors = ctx.saved_tensors
    around = factors, harmonics, tensors[: ctx.layers], tensors[ctx.layers :], row_ptr, ctx.text
    more = [None] if _kernels(ctx.text, factors).spec.passes else []
    of_factors, of_harmonics, *of_environments = differentiate(ctx, of_path_weights, around, [*given, *more])
    return of_factors, of_harmonics, of_environments, nothing, None, None


def differentiate(
    ctx: Any, of_path_weights: Iterable[int], around: tuple[Any, ...], given: Sequence[Tensor | None]
) -> list[Tensor]:
    """Derivatives by factors, harmonics and environments.

    Args:
        ctx: of the backward function.
        of_path_weights: their numbers among its inputs.
        around: what the chain was called with.
        given: gradients of its results, and of the factors if they are passed on; those that are absent are zero.

    Raises:
        InputError: a derivative by path weights is asked for.
    """
    if reached(ctx, of_path_weights):
        raise InputError(
            "allegro.chain/1 has no derivative by path weights: it is for models that are not trained. Train with "
            "another kernel of allegro.chain, or call module.train() first."
        )
    factors, harmonics, environments, path_weights, row_ptr, text = around
    shapes = [*_chain_shapes(factors, text), factors]
    # Who takes all results, as models do, fills nothing with zeros.
    grads = [torch.zeros_like(like) if one is None else one for one, like in zip(given, shapes, strict=False)]
    found: list[Tensor] = chain_backward(factors, harmonics, environments, path_weights, grads, row_ptr, text)
    return found


environment.register_autograd(_differentiate_environment, setup_context=_keep_environment)
chain.register_autograd(_differentiate_chain, setup_context=_keep_chain)
