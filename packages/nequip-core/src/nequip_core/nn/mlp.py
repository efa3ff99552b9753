"""Multilayer perceptrons without bias, whose weights have unit variance and are scaled where they are applied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "mish": nn.functional.mish,
    "gelu": nn.functional.gelu,
    "none": lambda x: x,
}


class MLP(nn.Module):
    """Layers alpha W with alpha = gain / sqrt(fan_in): gain 1 for the first layer, sqrt(2) after a nonlinearity.

    Args:
        widths: of input, hidden layers and output.
        nonlinearity: between layers; none follows the last one.
    """

    def __init__(self, widths: Sequence[int], nonlinearity: str = "silu") -> None:
        super().__init__()
        self.nonlinearity = NONLINEARITIES[nonlinearity]
        gain = 1.0 if nonlinearity == "none" else math.sqrt(2)
        pairs = list(itertools.pairwise(widths))
        self.alphas = [(gain if n else 1.0) / math.sqrt(fan_in) for n, (fan_in, _) in enumerate(pairs)]
        self.weights = nn.ParameterList(
            torch.empty(fan_in, fan_out).uniform_(-math.sqrt(3), math.sqrt(3)) for fan_in, fan_out in pairs
        )

    def forward(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """Applied to each row."""
        for n, (weight, alpha) in enumerate(zip(self.weights, self.alphas, strict=True)):
            if n:
                x = self.nonlinearity(x)
            x = x @ (alpha * weight)
        return x
