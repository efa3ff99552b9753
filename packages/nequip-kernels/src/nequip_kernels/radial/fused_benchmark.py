"""Cases of `nequip_kernels.benchmark` for the convolution that stores no weights: a call for each irrep's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from nequip_core.graph import Graph
from nequip_core.o3 import Irreps
from nequip_core.ops.contracts import NEQUIP_RADIAL_CONVOLUTION, ConvolutionSpec, RadialConvolutionSpec
from nequip_core.testing.kernels import radial_convolution_shapes
from nequip_kernels import floors
from nequip_kernels.benchmark import Call, Case, harmonics
from nequip_kernels.blocks import Block
from nequip_kernels.convolution.table import Table
from nequip_kernels.radial.fused_generate import SWEEPS, channels_of
from nequip_kernels.radial.fused_kernels import Kernels, block_of

CANDIDATES = tuple(
    Block(channels, edges, warps, stages)
    for channels, warps, tiles in (
        (64, 4, ((16, 1), (16, 2), (32, 1), (32, 2), (32, 3), (64, 1), (64, 2))),
        (64, 8, ((32, 1), (64, 1), (64, 2))),
        (32, 4, ((16, 2), (32, 1), (32, 2), (64, 2))),
    )
    for edges, stages in tiles
)
"""What is tried besides the default."""


def cases(channels: int, widths: tuple[int, ...] = (64, 128)) -> Iterator[Case]:
    """Middle layers of NequIP."""
    for l_max in (1, 2, 3):
        plain = harmonics(l_max)
        convolution = ConvolutionSpec(Irreps((irrep, channels) for irrep in plain), l_max, True, plain)
        for width in widths:
            spec = RadialConvolutionSpec(convolution, width)
            tried = tuple(block for block in CANDIDATES if block.channels <= channels_of(channels))
            name = f"radial l{l_max} width {width}"
            yield Case(name, NEQUIP_RADIAL_CONVOLUTION, spec, channels, _calls(spec), tried)


def _calls(spec: RadialConvolutionSpec) -> Callable[[Graph, torch.dtype], Iterator[Call]]:
    def calls(graph: Graph, dtype: torch.dtype) -> Iterator[Call]:
        device, atoms, edges = graph.row_ptr.device, graph.types.shape[0], graph.edge_shift.shape[0]
        table, row_ptr = Table(spec.convolution), graph.row_ptr

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=dtype, device=device)

        h, Y, hidden, matrix = (normal(*shape) for shape in radial_convolution_shapes(spec, graph).values())
        transposed, neighbor = matrix.mT.contiguous(), graph.edge_index[1].contiguous()
        out, messages, d_hidden = normal(atoms, table.dim_out), normal(edges, table.dim_in), torch.empty_like(hidden)
        sums = normal(edges, len(table.groups), table.components)
        given = {
            "forward": (h, Y, hidden, transposed, neighbor, out, row_ptr),
            "backward": (h, Y, hidden, matrix, transposed, out, neighbor, messages, sums, d_hidden, row_ptr),
        }
        floor = floors.of_radial(spec, atoms, edges, dtype.itemsize)
        for sweep in SWEEPS:
            for n, group in enumerate(table.groups):
                kernel = f"{sweep}_{n}"

                def make(block: Block, sweep: str = sweep, n: int = n, kernel: str = kernel) -> Callable[[], None]:
                    kernels = Kernels(spec, dtype, {kernel: block})
                    return lambda: kernels.sweep(sweep, n, *given[sweep])

                yield Call(kernel, group.terms, floor[kernel], make, block_of(sweep, group, dtype))

    return calls
