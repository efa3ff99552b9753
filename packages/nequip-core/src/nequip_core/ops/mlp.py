"""The reference of scalar_mlp/1: one product of matrices for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_core.ops.kept import Kept
from nequip_core.ops.silu import silu

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "mish": nn.functional.mish,
    "gelu": nn.functional.gelu,
    "none": lambda x: x,
}


def refuses(spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reference serves every specification, dtype and device."""
    return None


def make_mlp(spec: ScalarMLPSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The reference of scalar_mlp/1."""
    return ReferenceMLP(spec)


class ReferenceMLP(nn.Module):
    """scalar_mlp/1 layer by layer."""

    def __init__(self, spec: ScalarMLPSpec) -> None:
        super().__init__()
        self.spec = spec
        self.nonlinearity = NONLINEARITIES[spec.nonlinearity]
        self.scaled = Kept()

    def forward(
        self, inputs: Sequence[Float[Tensor, "rows inputs"]], weights: Sequence[Float[Tensor, "fan_in fan_out"]]
    ) -> Sequence[Float[Tensor, "rows outputs"]]:
        """See nequip_core.ops.contracts."""
        hidden, last = self.before_last(inputs, weights)
        x = hidden @ last
        results = [x] if len(self.spec.outputs) == 1 else x.split_with_sizes(list(self.spec.outputs), dim=1)
        return [*results, *inputs[: self.spec.passes]]

    def before_last(
        self, inputs: Sequence[Float[Tensor, "rows inputs"]], weights: Sequence[Float[Tensor, "fan_in fan_out"]]
    ) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "width outputs"]]:
        """The last hidden layer, and the scaled weights that it is multiplied with."""
        x = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), dim=1)
        *scaled, last = self.scaled(self._scale, *weights)
        for weight in scaled:
            x = self.nonlinearity(x @ weight)
        return x, last

    def _scale(self, *weights: Tensor) -> list[Tensor]:
        return [alpha * weight for weight, alpha in zip(weights, self.spec.alphas, strict=True)]
