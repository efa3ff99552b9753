"""How the operators of this package are made known to torch, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.library import triton_op

from nequip_core.ops.direct import Direct


class Operator(Direct):
    """An operator that launches Triton kernels: torch's where something is traced, a plain call where not.

    Attributes:
        operator: torch's.
    """

    def __init__(self, name: str, compute: Callable[..., Any]) -> None:
        gives_list = compute.__annotations__["return"] == list[Tensor]
        super().__init__(triton_op(name, compute, mutates_args=()), compute, gives_list=gives_list)

    def register_fake(self, shapes: Callable[..., Any]) -> None:
        """What it gives, without numbers."""
        self.operator.register_fake(shapes)  # type: ignore[attr-defined]

    def register_autograd(self, differentiate: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Its derivative, as torch.library takes it."""
        self.operator.register_autograd(differentiate, setup_context=setup_context)  # type: ignore[attr-defined]
        self.keep, self.differentiate = setup_context, differentiate


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator of a function of tensors, lists of tensors, and last a text; torch reads its annotations."""
    return lambda compute: Operator(name, compute)
