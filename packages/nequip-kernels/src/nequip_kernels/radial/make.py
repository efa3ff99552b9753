"""nequip.radial_convolution/1 in parts: whether it serves here, and the module that a model calls."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.contracts import RadialConvolutionSpec
from nequip_kernels.blocks import architecture_of
from nequip_kernels.convolution import make


def refuses(spec: RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why it can not serve; None: it can. On the CPU it always can."""
    return None if device.type == "cpu" else make.refuses(spec.convolution, dtype, device)


def make_radial_convolution(spec: RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The callable of the contract."""
    return RadialConvolutionInParts(spec, dtype, device)


def check_shapes(spec: RadialConvolutionSpec, h: Tensor, harmonics: Tensor, hidden: Tensor, matrix: Tensor) -> None:
    """A kernel reads what it was made for, whatever is there.

    Raises:
        ValueError: a tensor has another shape than the specification says, or another dtype than the features.
    """
    about = spec.convolution
    widths = {"h": about.irreps_in.dim, "harmonics": (about.l_max + 1) ** 2, "hidden": spec.width}
    widths["matrix"] = about.num_weights
    for (name, width), tensor in zip(widths.items(), (h, harmonics, hidden, matrix), strict=True):
        if tensor.shape[1] != width or tensor.dtype != h.dtype:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)} and {tensor.dtype}; expected rows of {width} and "
                f"{h.dtype}."
            )
    if matrix.shape[0] != spec.width:
        raise ValueError(f"matrix has {matrix.shape[0]} rows; expected {spec.width}.")


class RadialConvolutionInParts(nn.Module):
    """nequip.radial_convolution/1 with few of the weights at a time; holds nothing but the text that names kernels."""

    def __init__(self, spec: RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> None:
        from nequip_kernels.convolution.kernels import describe
        from nequip_kernels.radial.operators import written

        super().__init__()
        self.spec = spec
        self.text = written(describe(spec.convolution, architecture_of(device), dtype))

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        hidden: Float[Tensor, "edges width"],
        matrix: Float[Tensor, "width num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts.

        Raises:
            ValueError: a tensor has another shape than the specification says.
        """
        from nequip_kernels.radial.operators import radial_convolve

        check_shapes(self.spec, h, harmonics, hidden, matrix)
        about_graph = graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr
        result: Tensor = radial_convolve(h, harmonics, hidden, matrix, *about_graph, self.text)
        return result
