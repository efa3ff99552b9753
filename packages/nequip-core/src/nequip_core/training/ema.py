"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """The average of the trained weights: after step n, average += (1 - d) (weights - average).

    d = min(decay, (1 + n) / (10 + n)), so that the random weights of the start are forgotten quickly.

    Args:
        module: parameters that ask for gradients take part.
        decay: for n to infinity.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names = tuple(trained)
        self.parameters = list(trained.values())
        self.average: list[Tensor] = [p.detach().clone() for p in self.parameters]

    def follow(self) -> None:
        """Move to the device that the parameters were moved to."""
        self.average = [a.to(p.device) for a, p in zip(self.average, self.parameters, strict=True)]

    def update(self) -> None:
        """Take in the weights of one more step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def swap(self) -> None:
        """Exchange weights and average. The parameters stay the same objects; only what they hold changes."""
        for n, parameter in enumerate(self.parameters):
            parameter.data, self.average[n] = self.average[n], parameter.data

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module has the averaged weights inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """The number of updates and the averages by the parameters' names."""
        return {"updates": self.updates, "average": dict(zip(self.names, self.average, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; ``average`` may hold further names, such as buffers."""
        self.updates = state["updates"]
        self.average = [
            state["average"][name].detach().to(p.device, copy=True)
            for name, p in zip(self.names, self.parameters, strict=True)
        ]
