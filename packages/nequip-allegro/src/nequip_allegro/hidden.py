"""Environments from hidden layers: the weights of an environment are nowhere, for no edge.

An environment is linear in its weights, which are the last hidden layer of a network times a matrix,

    sum_edges Y (hidden @ W) = (sum_edges Y hidden) @ W

so the hidden layer, which is narrower than the weights, is summed in their place, and what is multiplied are sums of an
atom, not rows of its edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.ops.contracts import SCALAR_MLP, ScalarMLPSpec
from nequip_core.ops.kept import Kept
from nequip_core.ops.select import Ops


def narrower(spec: ScalarMLPSpec) -> int:
    """The width of the last hidden layer, if it is less than the network's last result; else 0."""
    width = spec.hidden[-1] if spec.hidden else 0
    return width if width < spec.outputs[-1] else 0


class HiddenWeights(nn.Module):
    """A network whose last result are environment weights, giving its last hidden layer in their place.

    It has no weights of its own.

    Args:
        spec: of the network.
        degrees: environment weights for each channel.
        l_max: of the environment.
        ops: chooses who computes it.
    """

    def __init__(self, spec: ScalarMLPSpec, degrees: int, l_max: int, ops: Ops) -> None:
        super().__init__()
        self.width = spec.hidden[-1]
        self.spec = replace(spec, outputs=(*spec.outputs[:-1], self.width))
        self.repeats = [2 * degree + 1 for degree in range(l_max + 1)] if degrees > 1 else [(l_max + 1) ** 2]
        self.chosen = ops.make(SCALAR_MLP, self.spec)
        self.kept = Kept()

    def forward(
        self, inputs: Sequence[Float[Tensor, "rows _"]], weights: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Float[Tensor, "components width channels"]]:
        """The results, the last of which is the hidden layer; and what multiplies its sums.

        Args:
            inputs: of the network.
            weights: of the network, unscaled.
        """
        *matrices, mixing = self.kept(self._apart, *weights)
        return self.chosen(inputs, matrices), mixing

    def _apart(self, *weights: Tensor) -> list[Tensor]:
        """Matrices of the network that gives the hidden layer as it is, and the rest of the last one by component."""
        *hidden, last = weights
        alpha = self.spec.alphas[-1]
        others = sum(self.spec.outputs[:-1])
        as_it_is = torch.eye(self.width, dtype=last.dtype, device=last.device) / alpha
        by_degree = (alpha * last[:, others:]).unflatten(1, (len(self.repeats), -1)).transpose(0, 1)
        by_component = [one.expand(times, -1, -1) for one, times in zip(by_degree, self.repeats, strict=True)]
        return [*hidden, torch.cat([last[:, :others], as_it_is], dim=1), torch.cat(by_component)]
