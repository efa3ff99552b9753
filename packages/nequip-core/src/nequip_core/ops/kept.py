"""What follows from weights alone is computed once, where nobody can differentiate by them.

Scaled weights, packed ones and products of two are a quarter of the operators of an evaluation, and the same in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from nequip_core.ops.promises import weights_are_constant

T = TypeVar("T")


class _Entry(NamedTuple):
    sources: tuple[Tensor, ...]
    held: list[Tensor]  # so that no other tensor can come to lie at the same place
    versions: list[int]
    value: Any


class Kept:
    """The last result of a function of weights, as long as these are the same tensors, at the same place, unchanged.

    Torch counts changes of a tensor, ``load_state_dict`` and steps of optimizers among them. What is written through
    ``weight.data`` in evaluation mode it can not see.
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
            entry = self._entry = _Entry(sources, held, [source._version for source in sources], value)
        result: T = entry.value
        return result

    def __deepcopy__(self, memo: Any) -> Kept:
        return Kept()

    def __reduce__(self) -> Any:
        return Kept, ()


def _is_of(entry: _Entry, sources: tuple[Tensor, ...]) -> bool:
    return len(sources) == len(entry.sources) and all(
        one is other and one.data_ptr() == held.data_ptr() and one._version == version
        for one, other, held, version in zip(sources, entry.sources, entry.held, entry.versions, strict=True)
    )
