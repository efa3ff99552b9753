"""Multilayer perceptrons without bias, whose weights have unit variance and are scaled where they are applied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.ops.contracts import SCALAR_MLP, ScalarMLPSpec
from nequip_core.ops.mlp import NONLINEARITIES, ReferenceMLP
from nequip_core.ops.select import Ops

__all__ = ["MLP", "NONLINEARITIES"]


class MLP(nn.Module):
    """Layers alpha W with alpha = gain / sqrt(fan_in): gain 1 for the first layer, sqrt(2) after a nonlinearity.

    In training it is the reference, unless ``ops`` chose what ``trains``: that keeps the hidden layers for the second
    derivative, which other kernels would compute again (decision 14).

    Args:
        widths: of input, hidden layers and output.
        nonlinearity: between layers; none follows the last one.
        ops: chooses who computes it where it is not trained; default: the reference.
        inputs: widths of the tensors that are its input side by side; default: there is one.
        outputs: likewise of its result.
        passes: how many of its inputs it gives behind its results, see `nequip_core.ops.contracts.ScalarMLPSpec`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        nonlinearity: str = "silu",
        ops: Ops | None = None,
        *,
        inputs: Sequence[int] | None = None,
        outputs: Sequence[int] | None = None,
        passes: int = 0,
    ) -> None:
        super().__init__()
        first, *hidden, out = widths
        self.spec = ScalarMLPSpec(
            tuple(inputs or [first]), tuple(hidden), tuple(outputs or [out]), nonlinearity, passes
        )
        assert self.spec.widths == tuple(widths)
        self.weights = nn.ParameterList(
            torch.empty(fan_in, fan_out).uniform_(-math.sqrt(3), math.sqrt(3))
            for fan_in, fan_out in itertools.pairwise(self.spec.widths)
        )
        self.reference = ReferenceMLP(self.spec)
        self.chosen = self.reference if ops is None else ops.make(SCALAR_MLP, self.spec)
        self.trained = self.chosen if getattr(self.chosen, "trains", False) else self.reference

    def forward(self, *inputs: Float[Tensor, "rows _"]) -> Any:
        """Applied to each row, which several tensors are side by side; a tensor, or a list of several."""
        compute = self.trained if self.training else self.chosen
        result: Sequence[Tensor] = compute(inputs, list(self.weights))
        return result[0] if len(result) == 1 else result

    def before_last(
        self, *inputs: Float[Tensor, "rows _"]
    ) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "width outputs"]]:
        """The last hidden layer, and the scaled weights that it is multiplied with."""
        return self.reference.before_last(inputs, list(self.weights))
