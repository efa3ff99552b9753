"""The Triton kernels of one convolution with weights from a table: the arguments of each launch, and what it writes."""

from __future__ import annotations

import json
from functools import cache

import torch
from torch import Tensor

from nequip_core.ops.contracts import NEQUIP_CONVOLUTION, NEQUIP_TABULATED_CONVOLUTION, TabulatedConvolutionSpec
from nequip_kernels import sources
from nequip_kernels.blocks import Block, choose
from nequip_kernels.convolution.kernels import collected, room_for_messages
from nequip_kernels.convolution.table import Table, read_spec, write_spec
from nequip_kernels.launch import Functions, contiguous
from nequip_kernels.tabulated.generate import SWEEPS, source


def describe(spec: TabulatedConvolutionSpec, architecture: str, dtype: torch.dtype) -> str:
    """The text that stands for these kernels in an operator's arguments; see `contraction.kernels.describe`."""
    table = Table(spec.convolution)
    blocks = {"collect": choose(architecture, NEQUIP_CONVOLUTION, "collect", dtype, 0, table.dim_in)}
    for n, group in enumerate(table.groups):
        for sweep in SWEEPS:
            given = architecture, NEQUIP_TABULATED_CONVOLUTION, sweep, dtype, group.terms, group.channels
            blocks[f"{sweep}_{n}"] = choose(*given)
    code = sources.fingerprint(source(table))
    return json.dumps({"spec": write_spec(spec.convolution), "blocks": blocks, "code": code}, sort_keys=True)


@cache
def kernels_of(text: str) -> Kernels:
    """The kernels that `describe` described."""
    blocks = {name: Block(*block) for name, block in json.loads(text)["blocks"].items()}
    return Kernels(Table(read_spec(text)), blocks)


class Kernels:
    """Generated, compiled by Triton at the first launch.

    Args:
        table: of the convolution's couplings.
        blocks: of each generated function.
    """

    def __init__(self, table: Table, blocks: dict[str, Block]) -> None:
        self.table, self.blocks = table, blocks
        self.functions = Functions(lambda: source(table))

    def forward(
        self,
        h: Tensor,
        harmonics: Tensor,
        place: Tensor,
        fraction: Tensor,
        weights: Tensor,
        neighbor: Tensor,
        row_ptr: Tensor,
    ) -> Tensor:
        """Messages summed to their centres; ``weights`` is the table of weights."""
        out = h.new_empty(h.shape[0], self.table.dim_out)
        inputs = contiguous(h, harmonics, place, fraction, weights, neighbor)
        self._sweep("forward", row_ptr, *inputs, out)
        return out

    def backward(
        self,
        h: Tensor,
        harmonics: Tensor,
        place: Tensor,
        fraction: Tensor,
        weights: Tensor,
        grad: Tensor,
        neighbor: Tensor,
        row_ptr: Tensor,
        by_neighbor: Tensor,
        neighbor_ptr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by h, harmonics and fraction."""
        edges, components = harmonics.shape
        messages = room_for_messages(self.table, harmonics)
        sums = h.new_empty(edges, self._slots("backward"), components + 1)
        inputs = contiguous(h, harmonics, place, fraction, weights, grad, neighbor)
        self._sweep("backward", row_ptr, *inputs, messages, sums)
        total = sums.sum(1)
        d_harmonics, d_fraction = total[:, :components].contiguous(), total[:, components].contiguous()
        d_h = collected(self.functions, self.blocks["collect"], messages, h, by_neighbor, neighbor_ptr)
        return d_h, d_harmonics, d_fraction

    def _sweep(self, name: str, row_ptr: Tensor, *tensors: Tensor) -> None:
        """One launch for each irrep of the features."""
        slot, slots = 0, self._slots(name)
        for n, group in enumerate(self.table.groups):
            block = self.blocks[f"{name}_{n}"]
            sizes, programs = block.constants(group.channels), self._programs(name, n)
            if name == "backward":
                sizes |= {"SLOT": slot, "SLOTS": slots}
            grid = row_ptr.shape[0], programs
            self.functions.launch(f"tabulated_{name}_{n}", grid, sizes, block, *tensors, row_ptr)
            slot += programs

    def _programs(self, name: str, n: int) -> int:
        """That share an atom."""
        return -(-self.table.groups[n].channels // self.blocks[f"{name}_{n}"].channels)

    def _slots(self, name: str) -> int:
        """That share an edge."""
        return sum(self._programs(name, n) for n in range(len(self.table.groups)))
