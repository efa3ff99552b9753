"""How the operators of this package are made known to torch, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, triton_op

from nequip_core.ops.direct import Direct


class Operator(Direct):
    """An operator that launches Triton kernels: torch's where something is traced, a plain call where not.

    Args:
        name: of the operator.
        compute: what it computes.
        opaque: whether a compiler sees one call and not the launches, whose number then may depend on sizes.

    Attributes:
        operator: torch's.
    """

    def __init__(self, name: str, compute: Callable[..., Any], *, opaque: bool = False) -> None:
        gives_list = compute.__annotations__["return"] == list[Tensor]
        # Inductor would copy arguments for each call to what strides they had when traced: kernels take any.
        define: Callable[..., Any] = partial(custom_op, tags=(torch.Tag.flexible_layout,)) if opaque else triton_op
        super().__init__(define(name, compute, mutates_args=()), compute, gives_list=gives_list)

    def register_fake(self, shapes: Callable[..., Any]) -> None:
        """What it gives, without numbers."""
        self.operator.register_fake(shapes)  # type: ignore[attr-defined]

    def register_autograd(self, differentiate: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Its derivative, as torch.library takes it."""
        self.operator.register_autograd(differentiate, setup_context=setup_context)  # type: ignore[attr-defined]
        self.keep, self.differentiate = setup_context, differentiate


def operator(name: str, *, opaque: bool = False) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator of a function of tensors, lists of tensors, and last a text; torch reads its annotations."""
    return lambda compute: Operator(name, compute, opaque=opaque)
