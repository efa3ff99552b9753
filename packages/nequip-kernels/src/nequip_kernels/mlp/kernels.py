"""The Triton kernels of one network of scalars: the arguments of each launch, and the tensors that it writes.

Methods take and give what the functions of `nequip_kernels.mlp.reference` do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

import torch
from torch import Tensor

from nequip_core.ops.contracts import SCALAR_MLP, ScalarMLPSpec
from nequip_kernels import sources
from nequip_kernels.blocks import Block, choose
from nequip_kernels.launch import Functions, contiguous, interpreted, rows_in_memory
from nequip_kernels.mlp.generate import TILE, pack_programs, source, tiles
from nequip_kernels.mlp.packed import INNER, UNIT, length

NAMES = ("forward", "backward")
PACKING = Block(TILE, TILE, 4)
BY_MATRIX = Block(UNIT, 32, 4, 3)
"""Of sums over rows."""

PROGRAMS, FEWEST_PARTS = 512, 16
"""About how many programs share them, and into how many parts rows are cut at the least."""

ANY_CHANNELS = 2**30
"""A piece of a width is as wide as the table says, however narrow the width."""


def describe(spec: ScalarMLPSpec, architecture: str, dtype: torch.dtype) -> str:
    """The text that stands for these kernels in an operator's arguments; see `contraction.kernels.describe`."""
    blocks = {name: choose(architecture, SCALAR_MLP, name, dtype, in_registers(spec), ANY_CHANNELS) for name in NAMES}
    code = sources.fingerprint("".join(source(spec, dtype, block.channels) for block in blocks.values()))
    about = {"spec": asdict(spec), "dtype": str(dtype).removeprefix("torch."), "blocks": blocks, "code": code}
    return json.dumps(about, sort_keys=True)


def in_registers(spec: ScalarMLPSpec) -> int:
    """Numbers of a row that a program keeps: its size in the table of blocks, where couplings have their terms."""
    return sum(spec.hidden)


@cache
def kernels_of(text: str) -> Kernels:
    """The kernels that `describe` described."""
    about = json.loads(text)
    given = about["spec"]
    inputs, hidden, outputs = (tuple(given[name]) for name in ("inputs", "hidden", "outputs"))
    spec = ScalarMLPSpec(inputs, hidden, outputs, given["nonlinearity"], given["passes"])
    return Kernels(
        spec, getattr(torch, about["dtype"]), {name: Block(*block) for name, block in about["blocks"].items()}
    )


class Kernels:
    """Generated, compiled by Triton at the first launch.

    Args:
        spec: of the network.
        dtype: of all numbers.
        blocks: of each kernel.
    """

    def __init__(self, spec: ScalarMLPSpec, dtype: torch.dtype, blocks: dict[str, Block]) -> None:
        self.spec, self.dtype, self.blocks = spec, dtype, blocks
        self.packed_length = length(spec, dtype)
        self.functions = {
            name: Functions(functools.partial(source, spec, dtype, block.channels)) for name, block in blocks.items()
        }

    def pack(self, weights: Sequence[Tensor]) -> Tensor:
        """The weights as the others read them."""
        out = weights[0].new_empty(self.packed_length)
        grid = pack_programs(self.spec, self.dtype), 1
        self.functions["forward"].launch("mlp_pack", grid, {"T": TILE}, PACKING, *contiguous(*weights), out)
        return out

    def forward(self, inputs: Sequence[Tensor], packed: Tensor) -> list[Tensor]:
        """The last layer's result."""
        x, rows = rows_in_memory(*inputs), inputs[0].shape[0]
        outputs = [packed.new_empty(rows, width) for width in self.spec.outputs]
        self._launch("forward", rows, *x, packed, *outputs, rows, *(one.stride(0) for one in x))
        return outputs

    def backward(
        self, inputs: Sequence[Tensor], packed: Tensor, grads: Sequence[Tensor], passed: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Derivatives by the inputs, to which the gradients of what was ``passed`` on are added."""
        x, g, more, rows = *map(_rows, (inputs, grads, passed)), inputs[0].shape[0]
        outputs = [one.new_empty(one.shape) for one in inputs]
        strides = [one.stride(0) for one in (*x, *g, *more)]
        name = "backward_and_add" if passed else "backward"
        self._launch(name, rows, *x, packed, *g, *more, *outputs, rows, *strides)
        return outputs

    def by_matrix(self, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        """Of a single layer: the derivative by its matrix."""
        x, g, rows = rows_in_memory(*inputs), rows_in_memory(*grads), inputs[0].shape[0]
        of_tiles = len(tiles(self.spec))
        # Whatever the rows and the device, so that the order of the sums is fixed. The interpreter takes one by one.
        parts = 3 if interpreted() else max(FEWEST_PARTS, PROGRAMS // of_tiles)
        sums = x[0].new_empty(parts, self.spec.widths[0], self.spec.widths[-1])
        sizes = {"BE": BY_MATRIX.edges, "T": UNIT, "PARTS": parts}
        strides = [one.stride(0) for one in (*x, *g)]
        self.functions["forward"].launch(
            "mlp_by_matrix", (parts, of_tiles), sizes, BY_MATRIX, *x, *g, sums, rows, *strides
        )
        return self.spec.alphas[0] * sums.sum(0)

    def _launch(self, name: str, rows: int, *arguments: Tensor | int) -> None:
        kind = name.split("_")[0]
        block = self.blocks[kind]
        sizes = {"BE": block.edges, "BN": block.channels, "BK": INNER}
        self.functions[kind].launch(f"mlp_{name}", (rows // block.edges + 1, 1), sizes, block, *arguments)


def _rows(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return rows_in_memory(*tensors)
