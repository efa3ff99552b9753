"""nequip.tabulated_convolution/1 by Triton kernels: whether they serve here, and the module that a model calls."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.contracts import TabulatedConvolutionSpec
from nequip_kernels.blocks import architecture_of
from nequip_kernels.convolution import make as convolution
from nequip_kernels.tabulated.kernels import describe

LARGEST_TABLE = 16 * 2**20
"""Bytes. Rows come from the second-level cache, of which an H100 has 50 MB; measured with 11.5 MB. What does not stay
there is read from memory, four numbers for each that a stored weight would be."""


def refuses(spec: TabulatedConvolutionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can not serve; None: they can."""
    reason = convolution.refuses(spec.convolution, dtype, device)
    if reason is None and (size := bytes_of_table(spec, dtype)) > LARGEST_TABLE:
        reason = f"its table has {size / 2**20:.0f} MiB, and may have {LARGEST_TABLE / 2**20:.0f} to stay in a cache"
    return reason


def bytes_of_table(spec: TabulatedConvolutionSpec, dtype: torch.dtype) -> int:
    """Of all rows."""
    return (spec.intervals + 1) * 4 * spec.convolution.num_weights * dtype.itemsize


def make_tabulated(spec: TabulatedConvolutionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract."""
    return KernelTabulatedConvolution(spec, dtype, device)


class KernelTabulatedConvolution(nn.Module):
    """nequip.tabulated_convolution/1 by Triton kernels; holds nothing but the text that names them."""

    def __init__(self, spec: TabulatedConvolutionSpec, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.text = describe(spec, architecture_of(device), dtype)

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        place: Int[Tensor, "edges"],
        fraction: Float[Tensor, "edges"],
        table: Float[Tensor, "rows 4 num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts.

        Raises:
            ValueError: a tensor has another shape than the specification says.
            ConfigError: in a backward pass, if the derivative by the table or a second one is asked for.
        """
        from nequip_kernels.tabulated.operators import tabulated

        self._check(h, harmonics, table)
        topology = graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr
        result: Tensor = tabulated(h, harmonics, place, fraction, table, *topology, self.text)
        return result

    def _check(self, h: Tensor, harmonics: Tensor, table: Tensor) -> None:
        """A kernel reads what it was made for, whatever is there."""
        spec = self.spec.convolution
        for name, tensor, expected in (
            ("h", h, (spec.irreps_in.dim,)),
            ("harmonics", harmonics, ((spec.l_max + 1) ** 2,)),
            ("table", table, (4, spec.num_weights)),
        ):
            if tuple(tensor.shape[1:]) != expected or tensor.dtype != h.dtype:
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)} and {tensor.dtype}; expected {expected} after the "
                    f"first axis and {h.dtype}."
                )
        if table.shape[0] != self.spec.intervals + 1:
            raise ValueError(f"The table has {table.shape[0]} rows; expected {self.spec.intervals + 1}.")
