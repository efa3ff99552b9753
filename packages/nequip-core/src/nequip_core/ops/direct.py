"""Calls of our operators that do not pass torch's dispatcher, where nobody there listens.

An operator that is written in Python costs the host 100 to 300 us in the dispatcher: its layers for autograd, for modes
and for checks of aliases are Python too. On a GPU with few atoms that is most of an operator's time. What tracers,
compilers, modes and subclasses of tensors see is the operator; all else is this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = frozenset({Tensor, nn.Parameter})


def is_observed() -> bool:
    """Whether something other than execution sees the operators that are called: a mode, a tracer, a transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


class Direct:
    """An operator of `torch.library`, called by the shortest way.

    Args:
        operator: as the dispatcher knows it.
        compute: what it computes, from the same arguments: tensors, lists of tensors, others; tensors come first.
        keep: its ``setup_context``, by position.
        differentiate: its ``backward``; without these two it has no derivative.
        gives_list: whether the result is a list of tensors.
    """

    def __init__(
        self,
        operator: Callable[..., Any],
        compute: Callable[..., Any],
        keep: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
        differentiate: Callable[..., Any] | None = None,
        *,
        gives_list: bool = False,
    ) -> None:
        self.operator, self.compute, self.keep, self.differentiate = operator, compute, keep, differentiate
        self.gives_list = gives_list

    def __call__(self, *arguments: Any) -> Any:
        """The operator's result."""
        if is_observed():
            return self.operator(*arguments)
        tensors = list(_tensors(arguments))
        if not all(type(tensor) in _PLAIN for tensor in tensors):
            return self.operator(*arguments)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            return self.compute(*arguments)
        if self.keep is None:
            return self.operator(*arguments)  # whose derivative torch refuses
        lengths = [len(one) if isinstance(one, list) else None for one in arguments]
        result = _Call.apply(*_flat(arguments), self, lengths)  # type: ignore[no-untyped-call]
        return list(result) if self.gives_list else result


class _Call(torch.autograd.Function):
    """One call. Lists are taken apart, since autograd sees only tensors that are arguments themselves."""

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> Any:
        *tensors, direct, lengths = flat
        arguments = _nested(tensors, lengths)
        result = direct.compute(*arguments)
        direct.keep(ctx, arguments, result)
        ctx.direct = direct
        return tuple(result) if direct.gives_list else result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        direct = ctx.direct
        given = direct.differentiate(ctx, list(grads)) if direct.gives_list else direct.differentiate(ctx, *grads)
        return *_flat(given if isinstance(given, tuple) else (given,)), None, None


def _tensors(arguments: Sequence[Any]) -> Iterable[Tensor]:
    for one in arguments:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list):
            yield from one


def _flat(arguments: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for one in arguments:
        if isinstance(one, list):
            flat += one
        else:
            flat.append(one)
    return flat


def _nested(flat: Sequence[Any], lengths: Sequence[int | None]) -> tuple[Any, ...]:
    """The inverse of `_flat`."""
    rest = iter(flat)
    return tuple(next(rest) if n is None else [next(rest) for _ in range(n)] for n in lengths)
