"""nequip.convolution/1 by Triton kernels: whether they serve here, and the module that a model calls."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.contracts import ConvolutionSpec
from nequip_kernels import requirements
from nequip_kernels.blocks import architecture_of
from nequip_kernels.contraction.make import TERMS
from nequip_kernels.convolution.table import Table


def refuses(spec: ConvolutionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels can not serve; None: they can."""
    reason = requirements.missing(device)
    if reason is None and (terms := max(group.terms for group in Table(spec).groups)) > TERMS:
        reason = f"the couplings of one irrep have {terms} terms, and a generated kernel at most {TERMS}"
    return reason


def make_convolution(spec: ConvolutionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract."""
    return KernelConvolution(spec, dtype, device)


class KernelConvolution(nn.Module):
    """nequip.convolution/1 by Triton kernels; holds nothing but the text that names them."""

    def __init__(self, spec: ConvolutionSpec, dtype: torch.dtype, device: torch.device) -> None:
        from nequip_kernels.convolution.kernels import describe

        super().__init__()
        self.spec = spec
        self.text = describe(spec, architecture_of(device), dtype)

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        weights: Float[Tensor, "edges num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts.

        Raises:
            ValueError: a tensor has another shape than the specification says.
        """
        from nequip_kernels.convolution.operators import convolve

        widths = {"h": self.spec.irreps_in.dim, "harmonics": (self.spec.l_max + 1) ** 2}
        widths["weights"] = self.spec.num_weights
        for (name, width), tensor in zip(widths.items(), (h, harmonics, weights), strict=True):
            if tensor.shape[1] != width or tensor.dtype != h.dtype:
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)} and {tensor.dtype}; expected rows of {width} and "
                    f"{h.dtype}."
                )
        about_graph = graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr
        result: Tensor = convolve(h, harmonics, weights, *about_graph, self.text)
        return result
