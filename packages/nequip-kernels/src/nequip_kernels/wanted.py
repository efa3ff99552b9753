"""Which derivatives a pass of autograd is for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def wanted(ctx: Any, *inputs: int) -> bool:
    """Whether the derivative by one of the inputs is used in this pass.

    ``ctx.needs_input_grad`` says whether an input has a derivative at all, which is true of weights also where only
    forces are asked for.

    Args:
        ctx: of the backward function that asks.
        inputs: their numbers; tensors all of them, and before all others.
    """
    return any(ctx.needs_input_grad[n] and _is_reached(ctx.next_functions[n][0]) for n in inputs)


def reached(ctx: Any, tensors: Iterable[int]) -> bool:
    """The same of an operator that takes lists of tensors, whose numbers count all tensors of all lists."""
    functions = (ctx.next_functions[n][0] for n in tensors)
    return any(function is not None and _is_reached(function) for function in functions)


def _is_reached(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf that autograd.grad was asked for
        return True
