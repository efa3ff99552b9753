"""nequip.radial_convolution/1 without weights in memory: whether it serves here, and the module that a model calls."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.contracts import RadialConvolutionSpec
from nequip_core.ops.kept import Kept
from nequip_kernels.blocks import architecture_of
from nequip_kernels.convolution import make as convolution
from nequip_kernels.convolution.table import Table
from nequip_kernels.radial.fused_generate import WIDEST
from nequip_kernels.radial.fused_kernels import describe
from nequip_kernels.radial.make import check_shapes

PATHS = 10
"""Most paths from one irrep: a program has the weights of all of them in registers."""


def refuses(spec: RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can not serve; None: they can."""
    reason = convolution.refuses(spec.convolution, dtype, device)
    if reason is None and spec.width > WIDEST:
        reason = f"the hidden layer has a width of {spec.width}, and a program has room for {WIDEST}"
    if reason is None and (paths := max(len(group.routes) for group in Table(spec.convolution).groups)) > PATHS:
        reason = f"{paths} paths come from one irrep, and a program has room for the weights of {PATHS}"
    return reason


def make_fused(spec: RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract."""
    return FusedRadialConvolution(spec, dtype, device)


class FusedRadialConvolution(nn.Module):
    """nequip.radial_convolution/1 by Triton kernels; holds the text that names them, and the matrix transposed."""

    def __init__(self, spec: RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.text = describe(spec, architecture_of(device), dtype)
        self.transposed = Kept()

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        hidden: Float[Tensor, "edges width"],
        matrix: Float[Tensor, "width num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts; differentiable once, by all but the matrix.

        Raises:
            ValueError: a tensor has another shape than the specification says.
            ConfigError: in a backward pass, if the derivative by the matrix or a second one is asked for.
        """
        from nequip_kernels.radial.fused_operators import radial_fused

        check_shapes(self.spec, h, harmonics, hidden, matrix)
        transposed = self.transposed(lambda one: one.mT.contiguous(), matrix)
        topology = graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr
        result: Tensor = radial_fused(h, harmonics, hidden, matrix, transposed, *topology, self.text)
        return result
