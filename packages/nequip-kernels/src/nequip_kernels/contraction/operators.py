"""allegro.contract/1 as operators of torch's dispatcher, which know their derivatives.

    contract -> contract_backward    -> contract_double_backward       by all but the path weights
             -> contract_by_weights  -> contract_double_by_weights     by the path weights

On CUDA an operator launches one kernel; torch.compile and AOTInductor see the launch itself. On the CPU it is what
`nequip_kernels.contraction.reference` computes. The derivative by path weights is an operator of its own: a pass that
wants forces only never pays for it. The third derivative does not exist.

``spec`` is the text of `nequip_kernels.contraction.kernels.describe`. Where it wants the even scalars apart, they are a
result of their own and ``scalar_grad`` is their gradient; else the one is empty and the other None.
"""

# torch reads the annotations to make the operators' schemas, so they are types here and not strings.
from typing import Any

import torch
from torch import Tensor

from nequip_kernels.contraction import reference
from nequip_kernels.contraction.kernels import Kernels, kernels_of
from nequip_kernels.launch import launched, like
from nequip_kernels.operator import operator
from nequip_kernels.wanted import wanted


@operator("nequip_kernels::contract")
def contract(
    features: Tensor, env_weights: Tensor, harmonics: Tensor, path_weights: Tensor, row_ptr: Tensor, spec: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Result, environment and scalars; see nequip_core.ops.contracts."""
    kernels = _kernels(spec, env_weights)
    inputs = features, env_weights, harmonics, path_weights, row_ptr
    return kernels.forward(*inputs) if launched(features) else reference.forward(kernels.table, *inputs)


@operator("nequip_kernels::contract_backward")
def contract_backward(
    features: Tensor,
    env_weights: Tensor,
    harmonics: Tensor,
    path_weights: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    row_ptr: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of sum(grad * out) + sum(scalar_grad * scalars).

    By features, environment weights, harmonics, and environment.
    """
    kernels = _kernels(spec, env_weights)
    inputs = features, env_weights, harmonics, path_weights, environment, grad, scalar_grad, row_ptr
    return kernels.backward(*inputs) if launched(features) else reference.backward(kernels.table, *inputs)


@operator("nequip_kernels::contract_double_backward")
def contract_double_backward(
    features: Tensor,
    env_weights: Tensor,
    harmonics: Tensor,
    path_weights: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    d_environment: Tensor,
    to_features: Tensor,
    to_env_weights: Tensor,
    to_harmonics: Tensor,
    row_ptr: Tensor,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of the first three results of `contract_backward`, times ``to_...``, summed.

    By grad, scalar_grad, features, environment weights and harmonics; and the direction in which the environment moves.
    """
    kernels = _kernels(spec, env_weights)
    inputs = (
        *(features, env_weights, harmonics, path_weights, environment, grad, scalar_grad, d_environment),
        *(to_features, to_env_weights, to_harmonics, row_ptr),
    )
    return kernels.double_backward(*inputs) if launched(features) else reference.double_backward(kernels.table, *inputs)


@operator("nequip_kernels::contract_by_weights")
def contract_by_weights(
    features: Tensor,
    env_weights: Tensor,
    harmonics: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    row_ptr: Tensor,
    spec: str,
) -> Tensor:
    """Derivative of what `contract_backward` differentiates by the path weights."""
    kernels = _kernels(spec, env_weights)
    inputs = features, harmonics, environment, grad, scalar_grad, row_ptr
    return kernels.by_weights(*inputs) if launched(features) else reference.by_weights(kernels.table, *inputs)


@operator("nequip_kernels::contract_double_by_weights")
def contract_double_by_weights(
    features: Tensor,
    env_weights: Tensor,
    harmonics: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    to_features: Tensor,
    to_harmonics: Tensor,
    to_environment: Tensor,
    row_ptr: Tensor,
    spec: str,
) -> Tensor:
    """Derivative by the path weights of what `contract_double_backward` differentiates."""
    kernels = _kernels(spec, env_weights)
    inputs = features, harmonics, environment, grad, scalar_grad, to_features, to_harmonics, to_environment, row_ptr
    if launched(features):
        return kernels.double_by_weights(*inputs)
    return reference.double_by_weights(kernels.table, *inputs)


def _kernels(spec: str, env_weights: Tensor) -> Kernels:
    return kernels_of(spec, int(env_weights.shape[1]))  # never a symbol: other degrees are another kernel


# Shapes


def _contract_shapes(
    features: Tensor, env_weights: Tensor, harmonics: Tensor, path_weights: Tensor, row_ptr: Tensor, spec: str
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(spec, env_weights)
    out = features.new_empty(features.shape[0], kernels.spec.dim_out, kernels.spec.channels)
    return out, kernels.of_atoms(features, row_ptr), kernels.of_scalars(features)


def _backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    features, env_weights, harmonics, *_, row_ptr, spec = arguments
    environment = _kernels(spec, env_weights).of_atoms(features, row_ptr)
    return *map(like, (features, env_weights, harmonics)), environment


def _double_backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    features, env_weights, harmonics, _, _, grad, *_, row_ptr, spec = arguments
    kernels = _kernels(spec, env_weights)
    of_gradients = like(grad), kernels.of_scalars(features)
    return *of_gradients, *map(like, (features, env_weights, harmonics)), kernels.of_atoms(features, row_ptr)


def _by_weights_shapes(features: Tensor, env_weights: Tensor, *rest: Any) -> Tensor:
    kernels = _kernels(rest[-1], env_weights)
    return features.new_empty(kernels.table.paths, kernels.spec.channels if kernels.spec.coupled else 1)


contract.register_fake(_contract_shapes)
contract_backward.register_fake(_backward_shapes)
contract_double_backward.register_fake(_double_backward_shapes)
contract_by_weights.register_fake(_by_weights_shapes)
contract_double_by_weights.register_fake(_by_weights_shapes)


# Derivatives


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)
    # An absent gradient stays absent: zeros of that size would be read and written for nothing.
    ctx.set_materialize_grads(False)


def _keep_contract(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, environment, scalars = output
    _keep_all(ctx, (*inputs[:-1], environment, inputs[-1]), output)
    empty = [] if _kernels(inputs[-1], inputs[1]).spec.scalars_apart else [scalars]
    ctx.mark_non_differentiable(environment, *empty)


def _differentiate_contract(
    ctx: Any, grad: Tensor | None, _: Any, scalar_grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None and scalar_grad is None:
        return (None,) * 6
    features, env_weights, harmonics, path_weights, row_ptr, environment = ctx.saved_tensors
    spec = _kernels(ctx.spec, env_weights).spec
    # Who takes both results, as models do, fills nothing with zeros.
    if grad is None:
        grad = features.new_zeros(features.shape[0], spec.dim_out, spec.channels)
    if scalar_grad is None and spec.scalars_apart:
        scalar_grad = features.new_zeros(features.shape[0], spec.channels)
    of_inputs: tuple[Tensor | None, ...] = (None, None, None)
    of_paths = None
    if wanted(ctx, 0, 1, 2):
        of_inputs = contract_backward(
            features, env_weights, harmonics, path_weights, environment, grad, scalar_grad, row_ptr, ctx.spec
        )[:3]
    if wanted(ctx, 3):
        of_paths = contract_by_weights(
            features, env_weights, harmonics, environment, grad, scalar_grad, row_ptr, ctx.spec
        )
    return *of_inputs, of_paths, None, None


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _keep_all(ctx, (*inputs[:-1], output[3], inputs[-1]), output)
    ctx.mark_non_differentiable(output[3])


def _differentiate_backward(
    ctx: Any, to_features: Tensor | None, to_env_weights: Tensor | None, to_harmonics: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    given = to_features, to_env_weights, to_harmonics
    if all(one is None for one in given):
        return (None,) * 9
    *inputs, scalar_grad, row_ptr, d_environment = ctx.saved_tensors
    features, env_weights, harmonics, _, environment, grad = inputs
    moving = [
        torch.zeros_like(like) if one is None else one
        for one, like in zip(given, (features, env_weights, harmonics), strict=True)
    ]
    of_grad, of_scalar_grad, of_features, of_env_weights, of_harmonics, to_environment = contract_double_backward(
        *inputs, scalar_grad, d_environment, *moving, row_ptr, ctx.spec
    )
    of_paths = None
    if wanted(ctx, 3):
        of_paths = contract_double_by_weights(
            features,
            env_weights,
            harmonics,
            environment,
            grad,
            scalar_grad,
            moving[0],
            moving[2],
            to_environment,
            row_ptr,
            ctx.spec,
        )
    # The environment is no variable of its own: what depends on it is counted with the weights and harmonics.
    of_gradients = of_grad, None if scalar_grad is None else of_scalar_grad
    return of_features, of_env_weights, of_harmonics, of_paths, None, *of_gradients, None, None


def _differentiate_by_weights(ctx: Any, to_paths: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of <to_paths, dW>, which is <grad, out> with other path weights: all derivatives exist already."""
    if to_paths is None:
        return (None,) * 8
    features, env_weights, harmonics, environment, grad, scalar_grad, row_ptr = ctx.saved_tensors
    of_features, of_env_weights, of_harmonics, _ = contract_backward(
        features, env_weights, harmonics, to_paths, environment, grad, scalar_grad, row_ptr, ctx.spec
    )
    of_grad, _, of_scalar_grad = contract(features, env_weights, harmonics, to_paths, row_ptr, ctx.spec)
    of_gradients = of_grad, None if scalar_grad is None else of_scalar_grad
    return of_features, of_env_weights, of_harmonics, None, *of_gradients, None, None


contract.register_autograd(_differentiate_contract, setup_context=_keep_contract)
contract_backward.register_autograd(_differentiate_backward, setup_context=_keep_backward)
contract_by_weights.register_autograd(_differentiate_by_weights, setup_context=_keep_all)
