"""The Triton kernels of one contraction: the arguments of each launch, and the tensors that it writes.

Methods take and give what the functions of `nequip_kernels.contraction.reference` do.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nequip_core.ops.contracts import ALLEGRO_CONTRACT, ContractionSpec
from nequip_kernels import sources
from nequip_kernels.blocks import Block, choose
from nequip_kernels.contraction.generate import source
from nequip_kernels.contraction.table import Table, read_spec, write_spec
from nequip_kernels.launch import Functions, contiguous, interpreted, like

NAMES = ("forward", "backward", "double_backward", "by_weights", "double_by_weights")
PROGRAMS = 1024
"""Of the sums for path weights; their number fixes the order of the sums, so it is the same on every device."""


def describe(spec: ContractionSpec, architecture: str, dtype: torch.dtype) -> str:
    """The text that stands for these kernels in an operator's arguments: all that decides what is computed and how.

    The hash of the generated code is part of it, so that compiled code in torch's caches is never older than this.
    """
    tables = [Table(spec, degrees) for degrees in {1, spec.l_max + 1}]
    terms = len(tables[0].terms)
    blocks = {
        name: list(choose(architecture, ALLEGRO_CONTRACT, in_table(name, spec), dtype, terms, spec.channels))
        for name in NAMES
    }
    code = sources.fingerprint("".join(source(table) for table in tables))
    return json.dumps({"spec": write_spec(spec), "blocks": blocks, "code": code}, sort_keys=True)


def in_table(name: str, spec: ContractionSpec) -> str:
    """A kernel's name in the table of blocks: that of a first layer computes more for each number that it reads."""
    return f"{name}_of_factors" if spec.factors else name


@cache
def kernels_of(text: str, degrees: int) -> Kernels:
    """The kernels that `describe` described, for environment weights of so many degrees."""
    return Kernels(
        read_spec(text), {name: Block(*block) for name, block in json.loads(text)["blocks"].items()}, degrees
    )


class Kernels:
    """Generated, compiled by Triton at the first launch.

    Args:
        spec: of the contraction.
        blocks: of each kernel.
        degrees: see `Table`.
    """

    def __init__(self, spec: ContractionSpec, blocks: dict[str, Block], degrees: int) -> None:
        self.spec, self.blocks = spec, blocks
        self.table = Table(spec, degrees)
        self.functions = Functions(lambda: source(self.table))

    def launch(self, name: str, programs: Any, *arguments: Any) -> None:
        """Run one kernel on so many programs for each block of channels."""
        block = self.blocks[name]
        sizes = block.constants(self.spec.channels)
        self.functions.launch(f"contract_{name}", (programs, self.channel_blocks(name)), sizes, block, *arguments)

    def channel_blocks(self, name: str) -> int:
        """How many programs share an atom."""
        return -(-self.spec.channels // self.blocks[name].channels)

    def forward(
        self, features: Tensor, env_weights: Tensor, harmonics: Tensor, path_weights: Tensor, row_ptr: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Result, environment and scalars."""
        out = features.new_empty(features.shape[0], self.spec.dim_out, self.spec.channels)
        environment, scalars = self.of_atoms(features, row_ptr), self.of_scalars(features)
        inputs = contiguous(features, env_weights, harmonics, path_weights)
        self.launch("forward", row_ptr.shape[0], *inputs, out, environment, *self._if_apart(scalars), row_ptr)
        return out, environment, scalars

    def backward(
        self,
        features: Tensor,
        env_weights: Tensor,
        harmonics: Tensor,
        path_weights: Tensor,
        environment: Tensor,
        grad: Tensor,
        scalar_grad: Tensor | None,
        row_ptr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Derivatives by features, environment weights, harmonics and environment."""
        inputs = contiguous(
            *(features, env_weights, harmonics, path_weights, environment, grad), *self._if_apart(scalar_grad)
        )
        outputs = (
            like(features),
            like(env_weights),
            self._sums_over_channels("backward", harmonics),
            self.of_atoms(features, row_ptr),
        )
        self.launch("backward", row_ptr.shape[0], *inputs, *outputs, row_ptr)
        d_features, d_env_weights, d_harmonics, d_environment = outputs
        return d_features, d_env_weights, d_harmonics.sum(1), d_environment

    def double_backward(
        self,
        features: Tensor,
        env_weights: Tensor,
        harmonics: Tensor,
        path_weights: Tensor,
        environment: Tensor,
        grad: Tensor,
        scalar_grad: Tensor | None,
        d_environment: Tensor,
        to_features: Tensor,
        to_env_weights: Tensor,
        to_harmonics: Tensor,
        row_ptr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Derivatives by both gradients, features, environment weights, harmonics; the environment's direction."""
        inputs = contiguous(
            *(features, env_weights, harmonics, path_weights, environment, grad),
            *self._if_apart(scalar_grad),
            *(d_environment, to_features, to_env_weights, to_harmonics),
        )
        of_grad, of_scalar_grad = like(grad), self.of_scalars(features)
        outputs = (
            like(features),
            like(env_weights),
            self._sums_over_channels("double_backward", harmonics),
            self.of_atoms(features, row_ptr),
        )
        of_gradients = of_grad, *self._if_apart(of_scalar_grad)
        self.launch("double_backward", row_ptr.shape[0], *inputs, *of_gradients, *outputs, row_ptr)
        of_features, of_env_weights, of_harmonics, to_environment = outputs
        return of_grad, of_scalar_grad, of_features, of_env_weights, of_harmonics.sum(1), to_environment

    def by_weights(
        self,
        features: Tensor,
        harmonics: Tensor,
        environment: Tensor,
        grad: Tensor,
        scalar_grad: Tensor | None,
        row_ptr: Tensor,
    ) -> Tensor:
        """Derivative by the path weights, [paths, channels] or [paths, 1]."""
        gradients = grad, *self._if_apart(scalar_grad)
        return self._sum_paths("by_weights", row_ptr, features, harmonics, environment, *gradients)

    def double_by_weights(
        self,
        features: Tensor,
        harmonics: Tensor,
        environment: Tensor,
        grad: Tensor,
        scalar_grad: Tensor | None,
        to_features: Tensor,
        to_harmonics: Tensor,
        to_environment: Tensor,
        row_ptr: Tensor,
    ) -> Tensor:
        """The same of a sum of first derivatives times directions."""
        gradients = grad, *self._if_apart(scalar_grad)
        moving = to_features, to_harmonics, to_environment
        return self._sum_paths("double_by_weights", row_ptr, features, harmonics, environment, *gradients, *moving)

    def _sum_paths(self, name: str, row_ptr: Tensor, *inputs: Tensor) -> Tensor:
        programs = 3 if interpreted() else PROGRAMS  # the interpreter takes one after the other
        sums = inputs[0].new_empty(programs, self.table.paths, self.spec.channels)
        self.launch(name, programs, *contiguous(*inputs), sums, row_ptr, row_ptr.shape[0] - 1)
        return sums.sum(0) if self.spec.coupled else sums.sum((0, 2)).unsqueeze(1)

    def of_atoms(self, features: Tensor, row_ptr: Tensor) -> Tensor:
        """Room for an environment."""
        return features.new_empty(row_ptr.shape[0] - 1, self.table.components, self.spec.channels)

    def of_scalars(self, features: Tensor) -> Tensor:
        """Room for the scalars, or for what moves as they do; empty where they are not wanted apart."""
        if not self.spec.scalars_apart:
            return features.new_empty(0)
        return features.new_empty(features.shape[0], self.spec.channels)

    def _if_apart(self, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """An argument of kernels whose scalars are wanted apart."""
        if not self.spec.scalars_apart:
            return ()
        assert tensor is not None
        return (tensor,)

    def _sums_over_channels(self, name: str, harmonics: Tensor) -> Tensor:
        """One for each block of channels; two with factors, one from either sweep."""
        slots = self.channel_blocks(name) * (2 if self.spec.factors else 1)
        return harmonics.new_empty(harmonics.shape[0], slots, self.table.components)
