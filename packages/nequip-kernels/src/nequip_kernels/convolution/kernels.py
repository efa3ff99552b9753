"""The Triton kernels of one convolution: the arguments of each launch, and the tensors that it writes.

Methods take and give what the functions of `nequip_kernels.convolution.reference` do.
"""

from __future__ import annotations

import json
from functools import cache

import torch
from torch import Tensor

from nequip_core.ops.contracts import NEQUIP_CONVOLUTION, ConvolutionSpec
from nequip_kernels import sources
from nequip_kernels.blocks import Block, choose
from nequip_kernels.convolution.generate import SWEEPS, source
from nequip_kernels.convolution.table import Table, read_spec, write_spec
from nequip_kernels.launch import Functions, contiguous, like

Blocks = dict[str, Block]
"""By the name of a generated function."""


def describe(spec: ConvolutionSpec, architecture: str, dtype: torch.dtype) -> str:
    """The text that stands for these kernels in an operator's arguments; see `contraction.kernels.describe`."""
    table = Table(spec)
    blocks = {"collect": list(choose(architecture, NEQUIP_CONVOLUTION, "collect", dtype, 0, table.dim_in))}
    for n, group in enumerate(table.groups):
        for sweep in SWEEPS:
            block = choose(architecture, NEQUIP_CONVOLUTION, sweep, dtype, group.terms, group.channels)
            blocks[f"{sweep}_{n}"] = list(block)
    return json.dumps(
        {"spec": write_spec(spec), "blocks": blocks, "code": sources.fingerprint(source(table))}, sort_keys=True
    )


@cache
def kernels_of(text: str) -> Kernels:
    """The kernels that `describe` described."""
    return Kernels(read_spec(text), {name: Block(*block) for name, block in json.loads(text)["blocks"].items()})


def room_for_messages(table: Table, harmonics: Tensor) -> Tensor:
    """One for each edge, of the features' width."""
    shape = harmonics.shape[0], table.dim_in
    # Irreps from which no path comes are written by nobody.
    complete = len(table.groups) == len(table.spec.irreps_in.blocks)
    return harmonics.new_empty(shape) if complete else harmonics.new_zeros(shape)


def collected(
    functions: Functions, block: Block, messages: Tensor, h: Tensor, by_neighbor: Tensor, neighbor_ptr: Tensor
) -> Tensor:
    """Sums of messages over the edges to each neighbour, as many rows as h; ``functions`` have `generate.collect`."""
    width = messages.shape[1]
    out = h.new_empty(h.shape[0], width)
    grid = neighbor_ptr.shape[0], -(-width // block.channels)
    tensors = messages, by_neighbor, out, neighbor_ptr
    functions.launch("convolve_collect", grid, block.constants(width), block, *tensors)
    return out


class Kernels:
    """Generated, compiled by Triton at the first launch.

    Args:
        spec: of the convolution.
        blocks: of each generated function.
    """

    def __init__(self, spec: ConvolutionSpec, blocks: Blocks) -> None:
        self.spec, self.blocks = spec, blocks
        self.table = Table(spec)
        self.functions = Functions(lambda: source(self.table))

    def forward(self, h: Tensor, harmonics: Tensor, weights: Tensor, neighbor: Tensor, row_ptr: Tensor) -> Tensor:
        """Messages summed to their centres."""
        out = h.new_empty(h.shape[0], self.table.dim_out)
        inputs = (*contiguous(h, harmonics, weights), neighbor.contiguous())
        self._sweep("forward", row_ptr, *inputs, out)
        return out

    def backward(
        self,
        h: Tensor,
        harmonics: Tensor,
        weights: Tensor,
        grad: Tensor,
        neighbor: Tensor,
        row_ptr: Tensor,
        by_neighbor: Tensor,
        neighbor_ptr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by h, harmonics and weights."""
        inputs = (*contiguous(h, harmonics, weights, grad), neighbor.contiguous())
        messages, sums, d_weights = (
            room_for_messages(self.table, harmonics),
            self._slots("backward", harmonics),
            like(weights),
        )
        self._sweep("backward", row_ptr, *inputs, messages, sums, d_weights)
        return (
            collected(self.functions, self.blocks["collect"], messages, h, by_neighbor, neighbor_ptr),
            sums.sum(1),
            d_weights,
        )

    def double_backward(
        self,
        h: Tensor,
        harmonics: Tensor,
        weights: Tensor,
        grad: Tensor,
        to_h: Tensor,
        to_harmonics: Tensor,
        to_weights: Tensor,
        neighbor: Tensor,
        row_ptr: Tensor,
        by_neighbor: Tensor,
        neighbor_ptr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Derivatives by grad, h, harmonics and weights of sums of the first derivatives times directions."""
        numbers = contiguous(h, harmonics, weights, grad, to_h, to_harmonics, to_weights)
        inputs = (*numbers, neighbor.contiguous())
        of_grad, messages = like(grad), room_for_messages(self.table, harmonics)
        sums, of_weights = self._slots("double_backward", harmonics), like(weights)
        self._sweep("double_backward", row_ptr, *inputs, of_grad, messages, sums, of_weights)
        return (
            of_grad,
            collected(self.functions, self.blocks["collect"], messages, h, by_neighbor, neighbor_ptr),
            sums.sum(1),
            of_weights,
        )

    def _sweep(self, name: str, row_ptr: Tensor, *tensors: Tensor) -> None:
        """One launch for each irrep of the features."""
        slot, slots = 0, self._number_of_slots(name)
        for n, group in enumerate(self.table.groups):
            block = self.blocks[f"{name}_{n}"]
            sizes = block.constants(group.channels)
            if name != "forward":
                sizes |= {"SLOT": slot, "SLOTS": slots}
            programs = -(-group.channels // block.channels)
            grid = row_ptr.shape[0], programs
            self.functions.launch(f"convolve_{name}_{n}", grid, sizes, block, *tensors, row_ptr)
            slot += programs

    def _number_of_slots(self, name: str) -> int:
        """Programs that share an edge."""
        return sum(
            -(-group.channels // self.blocks[f"{name}_{n}"].channels) for n, group in enumerate(self.table.groups)
        )

    def _slots(self, name: str, harmonics: Tensor) -> Tensor:
        """Room for their sums over channels."""
        return harmonics.new_empty(harmonics.shape[0], self._number_of_slots(name), self.table.components)
