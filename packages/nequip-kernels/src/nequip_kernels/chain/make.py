"""allegro.chain/1 by Triton kernels: whether they serve here, and the module that a model calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.contraction import mixed
from nequip_core.ops.contracts import ChainSpec
from nequip_kernels import requirements
from nequip_kernels.blocks import architecture_of
from nequip_kernels.contraction.table import Table

TERMS = 300
"""At most. The first two of three layers of l_max 2 with parity have 274. Nobody has measured more, as l_max 3 has,
and there arithmetic bounds already the first contraction, which a chain makes again."""


def refuses(spec: ChainSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can not serve; None: they can."""
    reason = requirements.missing(device)
    if reason is None and (terms := terms_of(spec)) > TERMS:
        reason = f"its couplings have {terms} terms, and a chain at most {TERMS}: features are stored"
    return reason


def terms_of(spec: ChainSpec) -> int:
    """Of its couplings."""
    return sum(len(Table(layer, 1).terms) for layer in spec.layers)


def make_chain(spec: ChainSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract."""
    return KernelChain(spec, dtype, device)


class KernelChain(nn.Module):
    """allegro.chain/1 by Triton kernels; holds nothing but the text that names them."""

    def __init__(self, spec: ChainSpec, dtype: torch.dtype, device: torch.device) -> None:
        from nequip_kernels.chain.kernels import describe

        super().__init__()
        self.spec = spec
        self.text = self.of_sums = describe(spec, architecture_of(device), dtype)
        if spec.width:
            layers = tuple(replace(layer, channels=spec.width) for layer in spec.layers)
            self.of_sums = describe(ChainSpec(layers), architecture_of(device), dtype)

    def forward(
        self,
        factors: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        environments: Sequence[Float[Tensor, "atoms components channels"]],
        env_weights: Float[Tensor, "edges env_degrees channels"],
        path_weights: Sequence[Float[Tensor, "paths channels_or_1"]],
        graph: Graph,
        mixing: Float[Tensor, "components width channels"] | None = None,
    ) -> tuple[Tensor, ...]:
        """See nequip_core.ops.contracts.

        Raises:
            ValueError: a tensor has another shape than the specification says.
        """
        from nequip_kernels.chain.operators import chain, environment
        from nequip_kernels.chain.passing import passing

        self._check(factors, harmonics, environments, env_weights, path_weights, mixing)
        own = mixed(environment(env_weights, harmonics, graph.row_ptr, self.of_sums), mixing)
        around, paths = [*environments, own], list(path_weights)
        call = passing if self.spec.passes else chain
        out, *more = call(factors, harmonics, around, paths, graph.row_ptr, self.text)
        return out, own, *more

    def _check(
        self,
        factors: Tensor,
        harmonics: Tensor,
        environments: Sequence[Tensor],
        env_weights: Tensor,
        path_weights: Sequence[Tensor],
        mixing: Tensor | None,
    ) -> None:
        """A kernel reads what it was made for, whatever is there."""
        first, layers = self.spec.layers[0], self.spec.layers
        degrees, components = first.l_max + 1, (first.l_max + 1) ** 2
        given = {"factors": factors, "harmonics": harmonics, "env_weights": env_weights}
        expected: dict[str, list[tuple[int, ...]]] = {
            "factors": [(degrees, first.channels)],
            "harmonics": [(components,)],
            "env_weights": [(1, first.channels), (degrees, first.channels)],
        }
        if (width := self.spec.width) and mixing is not None:
            expected["env_weights"] = [(1, width)]
            given["mixing"], expected["mixing"] = mixing, [(width, first.channels)]
        for n, tensor in enumerate(environments):
            given[f"environment {n}"], expected[f"environment {n}"] = tensor, [(components, first.channels)]
        for name, tensor in given.items():
            if tuple(tensor.shape[1:]) not in expected[name] or tensor.dtype != factors.dtype:
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)} and {tensor.dtype}; expected "
                    f"{' or '.join(map(str, expected[name]))} after the first axis and {factors.dtype}."
                )
        rows = [tuple(one.shape) for one in path_weights]
        wanted = [(len(layer.paths), layer.channels if layer.coupled else 1) for layer in layers]
        if bool(self.spec.width) != (mixing is not None):
            raise ValueError(f"A chain of hidden layers of width {self.spec.width} takes mixing, and no other does.")
        if rows != wanted or len(environments) != len(layers) - 1:
            raise ValueError(
                f"A chain of {len(layers)} layers takes {len(layers) - 1} environments and path weights of the shapes "
                f"{wanted}, received {len(environments)} and {rows}."
            )
