"""allegro.contract/1 by Triton kernels: whether they serve here, and the module that a model calls."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.contracts import ContractionSpec
from nequip_kernels import requirements
from nequip_kernels.blocks import architecture_of
from nequip_kernels.contraction.table import Table

TERMS = 2500
"""Largest number of terms; functions of more compile for many minutes and no longer fit a GPU's registers."""


def refuses(spec: ContractionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can not serve; None: they can."""
    reason = requirements.missing(device)
    if reason is None and (terms := len(Table(spec, 1).terms)) > TERMS:
        reason = f"its couplings have {terms} terms, and a generated kernel at most {TERMS}"
    return reason


def make_contraction(spec: ContractionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract."""
    return KernelContraction(spec, dtype, device)


class KernelContraction(nn.Module):
    """allegro.contract/1 by Triton kernels; holds nothing but the text that names them."""

    def __init__(self, spec: ContractionSpec, dtype: torch.dtype, device: torch.device) -> None:
        from nequip_kernels.contraction.kernels import describe

        super().__init__()
        self.spec = spec
        self.text = describe(spec, architecture_of(device), dtype)

    def forward(
        self,
        features: Float[Tensor, "edges components_in channels"],
        env_weights: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        path_weights: Float[Tensor, "paths channels_or_1"],
        graph: Graph,
    ) -> tuple[Tensor, ...]:
        """See nequip_core.ops.contracts.

        Raises:
            ValueError: a tensor has another shape than the specification says.
        """
        from nequip_kernels.contraction.operators import contract

        self._check(features, env_weights, harmonics, path_weights)
        out, environment, scalars = contract(features, env_weights, harmonics, path_weights, graph.row_ptr, self.text)
        return (out, environment, scalars) if self.spec.scalars_apart else (out, environment)

    def _check(self, features: Tensor, env_weights: Tensor, harmonics: Tensor, path_weights: Tensor) -> None:
        """A kernel reads what it was made for, whatever is there."""
        spec = self.spec
        expected: dict[str, tuple[Tensor, list[tuple[int, ...]]]] = {
            "features": (features, [(spec.l_max + 1 if spec.factors else spec.dim_in, spec.channels)]),
            "env_weights": (env_weights, [(1, spec.channels), (spec.l_max + 1, spec.channels)]),
            "harmonics": (harmonics, [((spec.l_max + 1) ** 2,)]),
            "path_weights": (path_weights, [(spec.channels if spec.coupled else 1,)]),
        }
        for name, (tensor, shapes) in expected.items():
            if tuple(tensor.shape[1:]) not in shapes or tensor.dtype != features.dtype:
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)} and {tensor.dtype}; expected "
                    f"{' or '.join(map(str, shapes))} after the first axis and {features.dtype}."
                )
        if path_weights.shape[0] != len(spec.paths):
            raise ValueError(f"path_weights has {path_weights.shape[0]} rows; expected {len(spec.paths)}, one a path.")
