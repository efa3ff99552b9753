"""The Triton kernels of one convolution that stores no weights: the arguments of each launch, and what it writes."""

from __future__ import annotations

import json
from functools import cache

import torch
from torch import Tensor

from nequip_core.ops.contracts import NEQUIP_CONVOLUTION, RadialConvolutionSpec
from nequip_kernels import sources
from nequip_kernels.blocks import Block, choose
from nequip_kernels.convolution.kernels import collected, room_for_messages
from nequip_kernels.convolution.table import Group, Table, read_spec, write_spec
from nequip_kernels.launch import Functions, contiguous, like
from nequip_kernels.radial.fused_generate import SWEEPS, channels_of, source


def describe(spec: RadialConvolutionSpec, architecture: str, dtype: torch.dtype) -> str:
    """The text that stands for these kernels in an operator's arguments; see `contraction.kernels.describe`."""
    table = Table(spec.convolution)
    blocks = {"collect": choose(architecture, NEQUIP_CONVOLUTION, "collect", dtype, 0, table.dim_in)}
    for n, group in enumerate(table.groups):
        blocks |= {f"{sweep}_{n}": block_of(sweep, group, dtype) for sweep in SWEEPS}
    about = {
        "spec": write_spec(spec.convolution),
        "width": spec.width,
        "dtype": str(dtype).removeprefix("torch."),
        "blocks": blocks,
        "code": sources.fingerprint(source(spec, dtype)),
    }
    return json.dumps(about, sort_keys=True)


def block_of(sweep: str, group: Group, dtype: torch.dtype) -> Block:
    """How the programs of one input irrep are cut: so that registers of an H100 suffice, or nearly so.

    More edges in a tile read the matrix less often; fewer leave room for more paths and components. Of the forward
    product's pieces the next is on its way where there is room for it.
    """
    if dtype == torch.float64:
        return Block(32, 16, 4)
    in_registers, channels = len(group.routes) + group.components, channels_of(group.channels)
    return Block(channels, 32 if in_registers <= 9 else 16, 4, 2 if sweep == "forward" and in_registers <= 7 else 1)


@cache
def kernels_of(text: str) -> Kernels:
    """The kernels that `describe` described."""
    about = json.loads(text)
    spec = RadialConvolutionSpec(read_spec(text), about["width"])
    return Kernels(
        spec, getattr(torch, about["dtype"]), {name: Block(*block) for name, block in about["blocks"].items()}
    )


class Kernels:
    """Generated, compiled by Triton at the first launch.

    Args:
        spec: of the convolution.
        dtype: of all numbers.
        blocks: of each generated function.
    """

    def __init__(self, spec: RadialConvolutionSpec, dtype: torch.dtype, blocks: dict[str, Block]) -> None:
        self.spec, self.blocks = spec, blocks
        self.table = Table(spec.convolution)
        self.functions = Functions(lambda: source(spec, dtype))

    def forward(
        self,
        h: Tensor,
        harmonics: Tensor,
        hidden: Tensor,
        transposed: Tensor,
        neighbor: Tensor,
        row_ptr: Tensor,
    ) -> Tensor:
        """Messages summed to their centres."""
        out = h.new_empty(h.shape[0], self.table.dim_out)
        tensors = (*contiguous(h, harmonics, hidden, transposed), neighbor.contiguous(), out, row_ptr)
        for n in range(len(self.table.groups)):
            self.sweep("forward", n, *tensors)
        return out

    def backward(
        self,
        h: Tensor,
        harmonics: Tensor,
        hidden: Tensor,
        matrix: Tensor,
        transposed: Tensor,
        grad: Tensor,
        neighbor: Tensor,
        row_ptr: Tensor,
        by_neighbor: Tensor,
        neighbor_ptr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by h, harmonics and hidden."""
        groups, edges = self.table.groups, harmonics.shape[0]
        messages = room_for_messages(self.table, harmonics)
        sums, d_hidden = h.new_empty(edges, len(groups), self.table.components), like(hidden)
        inputs = (*contiguous(h, harmonics, hidden, matrix, transposed, grad), neighbor.contiguous())
        for n in range(len(groups)):
            self.sweep("backward", n, *inputs, messages, sums, d_hidden, row_ptr)
        d_h = collected(self.functions, self.blocks["collect"], messages, h, by_neighbor, neighbor_ptr)
        return d_h, sums.sum(1), d_hidden

    def sweep(self, name: str, n: int, *tensors: Tensor) -> None:
        """The part of one irrep of the features; backward it adds to d_hidden what those before left there."""
        group, block, row_ptr = self.table.groups[n], self.blocks[f"{name}_{n}"], tensors[-1]
        sizes, programs = block.constants(group.channels), -(-group.channels // block.channels)
        if name == "backward":  # whose programs take one block of channels after the other
            sizes, programs = sizes | {"SLOT": n, "SLOTS": len(self.table.groups), "ADD": int(n > 0)}, 1
        self.functions.launch(f"radial_{name}_{n}", (row_ptr.shape[0], programs), sizes, block, *tensors)
