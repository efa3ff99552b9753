"""The Triton kernels of one chain: the arguments of each launch, and the tensors that it writes.

Methods take and give what the functions of `nequip_kernels.chain.reference` do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from nequip_core.ops.contracts import ALLEGRO_CHAIN, ChainSpec
from nequip_kernels import sources
from nequip_kernels.blocks import Block, choose
from nequip_kernels.chain.generate import source
from nequip_kernels.contraction.table import Table, of_text, write_spec
from nequip_kernels.launch import Functions, contiguous, like

NAMES = ("chain_forward", "chain_backward", "environment_forward", "environment_backward")


def describe(spec: ChainSpec, architecture: str, dtype: torch.dtype) -> str:
    """The text that stands for these kernels in an operator's arguments; see `contraction.kernels.describe`."""
    first = spec.layers[0]
    tables = [[Table(layer, degrees) for layer in spec.layers] for degrees in {1, first.l_max + 1}]
    terms = sum(len(table.terms) for table in tables[0])
    blocks = {name: list(choose(architecture, ALLEGRO_CHAIN, name, dtype, terms, first.channels)) for name in NAMES}
    code = sources.fingerprint("".join(source(each, passes=spec.passes) for each in tables))
    layers = [write_spec(layer) for layer in spec.layers]
    return json.dumps({"layers": layers, "passes": spec.passes, "blocks": blocks, "code": code}, sort_keys=True)


@cache
def kernels_of(text: str, degrees: int) -> Kernels:
    """The kernels that `describe` described, for environment weights of so many degrees."""
    about = json.loads(text)
    spec = ChainSpec(tuple(of_text(layer) for layer in about["layers"]), about["passes"])
    return Kernels(spec, {name: Block(*block) for name, block in about["blocks"].items()}, degrees)


class Kernels:
    """Generated, compiled by Triton at the first launch.

    Args:
        spec: of the chain.
        blocks: of each kernel.
        degrees: environment weights of an edge and channel.
    """

    def __init__(self, spec: ChainSpec, blocks: dict[str, Block], degrees: int) -> None:
        self.spec, self.blocks = spec, blocks
        self.tables = [Table(layer, degrees) for layer in spec.layers]
        self.first, self.last = spec.layers[0], spec.layers[-1]
        self.functions = Functions(lambda: source(self.tables, passes=spec.passes))

    def environment(self, env_weights: Tensor, harmonics: Tensor, row_ptr: Tensor) -> Tensor:
        """Sums of weighted harmonics."""
        out = self.of_atoms(env_weights, row_ptr)
        self._launch("environment_forward", row_ptr, *contiguous(env_weights, harmonics), out)
        return out

    def environment_backward(
        self, env_weights: Tensor, harmonics: Tensor, grad: Tensor, row_ptr: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives by weights and harmonics."""
        inputs, outputs = contiguous(env_weights, harmonics, grad), like(env_weights)
        sums = self._slots("environment_backward", harmonics)
        self._launch("environment_backward", row_ptr, *inputs, outputs, sums)
        return outputs, sums.sum(1)

    def chain(
        self,
        factors: Tensor,
        harmonics: Tensor,
        environments: Sequence[Tensor],
        path_weights: Sequence[Tensor],
        row_ptr: Tensor,
    ) -> list[Tensor]:
        """What the last layer gives, and its even scalars if they are wanted apart."""
        outputs = self.results(factors)
        inputs = contiguous(factors, harmonics, *environments, *path_weights)
        self._launch("chain_forward", row_ptr, *inputs, *outputs)
        return outputs

    def chain_backward(
        self,
        factors: Tensor,
        harmonics: Tensor,
        environments: Sequence[Tensor],
        path_weights: Sequence[Tensor],
        grads: Sequence[Tensor],
        row_ptr: Tensor,
    ) -> list[Tensor]:
        """Derivatives by factors, harmonics and environments; the last gradient is that of factors passed on."""
        inputs = contiguous(factors, harmonics, *environments, *path_weights, *grads)
        d_factors, sums = like(factors), self._slots("chain_backward", harmonics)
        of_environments = [like(one) for one in environments]
        self._launch("chain_backward", row_ptr, *inputs, d_factors, sums, *of_environments)
        return [d_factors, sums.sum(1), *of_environments]

    def results(self, factors: Tensor) -> list[Tensor]:
        """Room for what a chain gives."""
        edges, channels = factors.shape[0], self.first.channels
        out = factors.new_empty(edges, self.last.dim_out, channels)
        scalars = [factors.new_empty(edges, channels)] if self.last.scalars_apart else []
        return [out, *scalars]

    def of_atoms(self, env_weights: Tensor, row_ptr: Tensor) -> Tensor:
        """Room for an environment."""
        return env_weights.new_empty(row_ptr.shape[0] - 1, self.tables[0].components, self.first.channels)

    def _launch(self, name: str, row_ptr: Tensor, *tensors: Tensor) -> None:
        block = self.blocks[name]
        grid = row_ptr.shape[0], self._programs(name)
        self.functions.launch(name, grid, block.constants(self.first.channels), block, *tensors, row_ptr)

    def _programs(self, name: str) -> int:
        """That share an atom."""
        return -(-self.first.channels // self.blocks[name].channels)

    def _slots(self, name: str, harmonics: Tensor) -> Tensor:
        """Room for sums over channels, one for each program of an edge."""
        return harmonics.new_empty(harmonics.shape[0], self._programs(name), self.tables[0].components)
