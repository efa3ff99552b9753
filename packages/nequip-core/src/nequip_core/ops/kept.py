"""What follows from weights alone is computed once, where nobody can differentiate by them.

Scaled weights, packed ones and products of two are a quarter of the operators of an evaluation, and the same in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from nequip_core.ops.promises import weights_are_constant

T = TypeVar("T")

_changes = 0
"""How often weights may have changed without torch counting it."""


def forget(*_: Any) -> None:
    """Nothing that was kept is used again."""
    global _changes
    _changes += 1


# Fused optimizers (torch 2.13) change weights without counting it.
register_optimizer_step_post_hook(forget)


class _Entry(NamedTuple):
    sources: tuple[Tensor, ...]
    held: list[Tensor]  # so that no other tensor can come to lie at the same place
    versions: list[int]
    changes: int
    value: Any


class Kept:
    """The last result of a function of weights, as long as these are the same tensors, at the same place, unchanged.

    Torch counts changes of a tensor. A step of any optimizer, and a potential that goes into training mode, make all
    that was kept worthless. What is written through ``weight.data`` between two evaluations is not seen; call `forget`.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def __call__(self, make: Callable[..., T], *sources: Tensor) -> T:
        """``make(*sources)``, of the tensors without derivatives where `weights_are_constant`."""
        if not weights_are_constant():
            self._entry = None
            return make(*sources)
        entry = self._entry
        if entry is None or not _is_of(entry, sources):
            held = [source.detach() for source in sources]
            with torch.no_grad():
                value = make(*held)
            if any(source.is_inference() for source in sources):
                return value  # torch does not count their changes
            entry = self._entry = _Entry(sources, held, [source._version for source in sources], _changes, value)
        result: T = entry.value
        return result

    def __deepcopy__(self, memo: Any) -> Kept:
        return Kept()

    def __reduce__(self) -> Any:
        return Kept, ()


def _is_of(entry: _Entry, sources: tuple[Tensor, ...]) -> bool:
    return (
        entry.changes == _changes
        and len(sources) == len(entry.sources)
        and all(
            one is other and one.data_ptr() == held.data_ptr() and one._version == version
            for one, other, held, version in zip(sources, entry.sources, entry.held, entry.versions, strict=True)
        )
    )
