"""Convolutions with weights from a table against the reference: value and first derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nequip_core.graph import Graph, to
from nequip_core.o3 import Irrep, Irreps
from nequip_core.ops.contracts import ConvolutionSpec, TabulatedConvolutionSpec
from nequip_core.ops.reference import make_tabulated_convolution
from nequip_core.testing.kernels import derivatives, random_graph
from nequip_kernels.tabulated.make import KernelTabulatedConvolution

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def spec_of(l_max: int, channels: int, *, parity: bool = False, intervals: int = 7) -> TabulatedConvolutionSpec:
    """A middle layer."""
    signs = (1, -1) if parity else (None,)
    irreps = [Irrep(degree, (-1) ** degree if sign is None else sign) for degree in range(l_max + 1) for sign in signs]
    convolution = ConvolutionSpec(Irreps((irrep, channels) for irrep in irreps), l_max, True, tuple(irreps))
    return TabulatedConvolutionSpec(convolution, intervals)


SPEC = spec_of(2, 5)


def inputs(
    graph: Graph, spec: TabulatedConvolutionSpec, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    edges, convolution = graph.edge_shift.shape[0], spec.convolution
    shapes = {
        "h": (graph.types.shape[0], convolution.irreps_in.dim),
        "harmonics": (edges, (convolution.l_max + 1) ** 2),
        "fraction": (edges,),
    }
    named = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    table = torch.randn(spec.intervals + 1, 4, convolution.num_weights, generator=generator, dtype=dtype)
    table[-1] = 0
    place = torch.randint(0, spec.intervals + 1, (edges,), generator=generator, dtype=torch.int32)
    return named, place, table


def check(
    spec: TabulatedConvolutionSpec,
    dtype: torch.dtype,
    device: torch.device,
    *,
    atoms: int = 6,
    lengths: tuple[int, ...] = (7, 0, 3, 11, 1, 5),
) -> dict[str, float]:
    """Value and first derivatives: deviations from the reference in float64; raise where one is too large."""
    graph = to(random_graph(atoms, lengths), device)
    named, place, table = inputs(graph, spec, dtype)

    def results(made: Any, kind: torch.dtype) -> dict[str, Tensor]:
        def function(h: Tensor, harmonics: Tensor, fraction: Tensor, graph: Graph) -> Tensor:
            result: Tensor = made(h, harmonics, place.to(device), fraction, table.to(device, kind), graph)
            return result

        return derivatives(function, {name: x.to(device, kind) for name, x in named.items()}, graph, 1, 0)

    ours = results(KernelTabulatedConvolution(spec, dtype, device), dtype)
    theirs = results(make_tabulated_convolution(spec, torch.float64, device), torch.float64)
    deviations = {name: _deviation(ours[name].double(), one) for name, one in theirs.items()}
    assert max(deviations.values()) <= TOLERANCE[dtype], deviations
    return deviations


def _deviation(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    largest = float(other.abs().max()) if other.numel() else 0.0
    return float((one - other).abs().max()) / (largest or 1.0) if other.numel() else 0.0
