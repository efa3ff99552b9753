"""Multilayer perceptrons without bias, whose weights have unit variance and are scaled where they are applied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.ops.contracts import SCALAR_MLP, ScalarMLPSpec
from nequip_core.ops.mlp import NONLINEARITIES, ReferenceMLP
from nequip_core.ops.select import Ops

__all__ = ["MLP", "NONLINEARITIES"]


class MLP(nn.Module):
    """Layers alpha W with alpha = gain / sqrt(fan_in): gain 1 for the first layer, sqrt(2) after a nonlinearity.

    In training it is the reference whatever ``ops`` chose: that keeps the hidden layers for the second derivative,
    which a kernel would compute again (decision 14).

    Args:
        widths: of input, hidden layers and output.
        nonlinearity: between layers; none follows the last one.
        ops: chooses who computes it where it is not trained; default: the reference.
        inputs: of the tensors that are its input side by side; default: there is one.
    """

    def __init__(
        self,
        widths: Sequence[int],
        nonlinearity: str = "silu",
        ops: Ops | None = None,
        *,
        inputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        first, *hidden, out = widths
        self.spec = ScalarMLPSpec((first,) if inputs is None else tuple(inputs), tuple(hidden), out, nonlinearity)
        assert self.spec.widths[0] == first
        self.weights = nn.ParameterList(
            torch.empty(fan_in, fan_out).uniform_(-math.sqrt(3), math.sqrt(3))
            for fan_in, fan_out in itertools.pairwise(self.spec.widths)
        )
        self.reference = ReferenceMLP(self.spec)
        self.chosen = self.reference if ops is None else ops.make(SCALAR_MLP, self.spec)

    def forward(self, *inputs: Float[Tensor, "rows _"]) -> Float[Tensor, "rows outputs"]:
        """Applied to each row; several tensors are one row side by side."""
        compute = self.reference if self.training else self.chosen
        result: Tensor = compute(inputs, list(self.weights))
        return result
