"""Whether a kernel computes what the reference does: value, first and second derivative.

    check_kernel("triton", ContractionSpec(...), torch.float32, torch.device("cuda"), seed=0)

The graph and the numbers are drawn from the seed: rows of many lengths, atoms without edges among them. All four inputs
have a derivative, and so has the first derivative by each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nequip_core.errors import CheckError
from nequip_core.graph import Graph
from nequip_core.graph import to as graph_to
from nequip_core.ops import contraction, mlp, reference
from nequip_core.ops.contracts import (
    ALLEGRO_CONTRACT,
    NEQUIP_CONVOLUTION,
    NEQUIP_RADIAL_CONVOLUTION,
    SCALAR_MLP,
    ContractionSpec,
    ConvolutionSpec,
    RadialConvolutionSpec,
    ScalarMLPSpec,
)
from nequip_core.plugins.manager import load_registry

Spec = ContractionSpec | ConvolutionSpec | RadialConvolutionSpec | ScalarMLPSpec
"""Of an operator; its class says which."""

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Largest deviation of any number, as a part of the largest number of its tensor."""

RESULTS = ("value", "environment", "scalars")
"""Names of what an operator gives, in order; all but contractions give the first only."""

LENGTHS = (7, 0, 3, 11, 1, 5)
"""Edges of the atoms of the graph that is drawn, over and over."""


def check_kernel(
    name: str,
    spec: Spec,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    *,
    atoms: int = 6,
    lengths: tuple[int, ...] = LENGTHS,
    degrees: int | None = None,
    orders: int = 2,
) -> dict[str, float]:
    """Compare a kernel with the reference, which computes in float64.

    Args:
        name: of the kernel, as in ``kernels: NAME``. It is made and called whatever it refuses.
        spec: of a contraction, a convolution with or without its radial layer, or a network of scalars, whose rows are
            the edges.
        dtype: of the kernel.
        device: where it runs.
        seed: of graph and numbers.
        atoms: of the graph.
        lengths: edges of each atom, repeated as often as needed.
        degrees: environment weights of a contraction; default: one for each degree.
        orders: of derivatives that are compared.

    Returns:
        The deviation of each result, by its name.

    Raises:
        CheckError: one exceeds `TOLERANCE`; the message names it.
    """
    op = _op_of(spec)
    entry = load_registry().kernels.get(f"{op}/{name}")
    if entry is None:
        raise CheckError(f"No installed plugin has a kernel {name!r} of {op}.")
    graph = random_graph(atoms, lengths, seed)
    shapes = shapes_of(spec, graph, degrees)
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # the same numbers for both

    inputs = {label: normal(shape) for label, shape in shapes.items()}
    definition = _reference(spec, device)
    kernel = entry.make.load()(spec, dtype, device)
    if isinstance(spec, ScalarMLPSpec):
        definition, kernel = (_of_tensors(function, spec) for function in (definition, kernel))
    graph = graph_to(graph, device)
    results = [
        derivatives(function, {label: x.to(device, kind) for label, x in inputs.items()}, graph, orders, seed)
        for function, kind in ((kernel, dtype), (definition, torch.float64))
    ]
    deviations = {
        label: _deviation(received.double(), expected)
        for (label, received), expected in zip(results[0].items(), results[1].values(), strict=True)
    }
    wrong = {label: value for label, value in deviations.items() if not value <= TOLERANCE[dtype]}
    if wrong:
        raise CheckError(
            f"The kernel {name!r} of {op} differs from the reference by more than {TOLERANCE[dtype]} of the largest "
            f"number of a result: {wrong}. {spec}, {dtype}, {device}, seed {seed}."
        )
    return deviations


def _op_of(spec: Spec) -> str:
    return {
        ContractionSpec: ALLEGRO_CONTRACT,
        ConvolutionSpec: NEQUIP_CONVOLUTION,
        RadialConvolutionSpec: NEQUIP_RADIAL_CONVOLUTION,
        ScalarMLPSpec: SCALAR_MLP,
    }[type(spec)]


def _reference(spec: Spec, device: torch.device) -> Callable[..., Any]:
    if isinstance(spec, ContractionSpec):
        return contraction.make_contraction(spec, torch.float64, device)
    if isinstance(spec, ConvolutionSpec):
        return reference.make_convolution(spec, torch.float64, device)
    if isinstance(spec, RadialConvolutionSpec):
        return reference.make_radial_convolution(spec, torch.float64, device)
    return mlp.make_mlp(spec, torch.float64, device)


def _of_tensors(function: Callable[..., Any], spec: ScalarMLPSpec) -> Callable[..., Any]:
    """A network of scalars as a function of single tensors and a graph."""

    def called(*given: Any) -> Any:
        *tensors, _ = given
        inputs = len(spec.inputs)
        return torch.cat(list(function(tensors[:inputs], tensors[inputs:])), dim=1)

    return called


def derivatives(
    function: Callable[..., Any], inputs: dict[str, Tensor], graph: Graph, orders: int, seed: int
) -> dict[str, Tensor]:
    """Value, first derivative and second derivative of an operator of tensors and a graph, by name.

    The first is by a direction of each result, the second by one of the first derivatives, all drawn from the seed. So
    both are sums of products only, and what float32 rounds stays as small as in the operator. The second derivative by
    the direction of a result is what forces contribute to the gradient of a loss.
    """
    leaves = {label: x.detach().requires_grad_() for label, x in inputs.items()}
    generator = torch.Generator().manual_seed(seed + 1)

    def direction(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)  # the same numbers, whatever the operator computes in

    result = function(*leaves.values(), graph)
    results = dict(zip(RESULTS, result if isinstance(result, tuple) else (result,), strict=False))
    found = {label: x.detach() for label, x in results.items()}
    results.pop("environment", None)  # which has no derivative
    directions = {f"direction of {label}": direction(x).requires_grad_() for label, x in results.items()}
    if orders >= 1:
        given = [*results.values()], [*leaves.values()], [*directions.values()]
        first = torch.autograd.grad(*given, create_graph=orders > 1)
        found |= {f"by {label}": x.detach() for label, x in zip(leaves, first, strict=True)}
    if orders >= 2:
        variables = leaves | directions
        second = torch.autograd.grad(first, list(variables.values()), [direction(x) for x in first])
        found |= {f"second by {label}": x.detach() for label, x in zip(variables, second, strict=True)}
    return found


def _deviation(received: Tensor, expected: Tensor) -> float:
    if received.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    scale = expected.abs().max().item()
    return (received - expected).abs().max().item() / (scale if scale > 0 else 1.0)


def shapes_of(spec: Spec, graph: Graph, degrees: int | None = None) -> dict[str, tuple[int, ...]]:
    """Of the inputs of an operator, by name."""
    if isinstance(spec, ContractionSpec):
        return contraction_shapes(spec, graph, degrees)
    if isinstance(spec, ConvolutionSpec):
        return convolution_shapes(spec, graph)
    if isinstance(spec, RadialConvolutionSpec):
        return radial_convolution_shapes(spec, graph)
    return mlp_shapes(spec, graph.edge_shift.shape[0])


def mlp_shapes(spec: ScalarMLPSpec, rows: int) -> dict[str, tuple[int, ...]]:
    """Of the inputs and weights of scalar_mlp/1."""
    inputs = {f"input {n}": (rows, width) for n, width in enumerate(spec.inputs)}
    return inputs | {f"weight {n}": spec.widths[n : n + 2] for n in range(spec.layers)}


def contraction_shapes(spec: ContractionSpec, graph: Graph, degrees: int | None = None) -> dict[str, tuple[int, ...]]:
    """Of the inputs of allegro.contract/1."""
    edges, components = graph.edge_shift.shape[0], (spec.l_max + 1) ** 2
    return {
        "features": (edges, spec.l_max + 1 if spec.factors else spec.dim_in, spec.channels),
        "env_weights": (edges, spec.l_max + 1 if degrees is None else degrees, spec.channels),
        "harmonics": (edges, components),
        "path_weights": (len(spec.paths), spec.channels if spec.coupled else 1),
    }


def convolution_shapes(spec: ConvolutionSpec, graph: Graph) -> dict[str, tuple[int, ...]]:
    """Of the inputs of nequip.convolution/1."""
    edges = graph.edge_shift.shape[0]
    return {
        "h": (graph.types.shape[0], spec.irreps_in.dim),
        "harmonics": (edges, (spec.l_max + 1) ** 2),
        "weights": (edges, spec.num_weights),
    }


def radial_convolution_shapes(spec: RadialConvolutionSpec, graph: Graph) -> dict[str, tuple[int, ...]]:
    """Of the inputs of nequip.radial_convolution/1."""
    shapes = convolution_shapes(spec.convolution, graph)
    edges, num_weights = shapes.pop("weights")
    return shapes | {"hidden": (edges, spec.width), "matrix": (spec.width, num_weights)}


def random_graph(atoms: int, lengths: tuple[int, ...], seed: int = 0) -> Graph:
    """A graph of one structure whose edges go anywhere; only its topology means something.

    Args:
        atoms: number of them; may be zero.
        lengths: edges of each, repeated.
        seed: of the neighbours.
    """
    counts = torch.tensor([lengths[n % len(lengths)] for n in range(atoms)], dtype=torch.int64)
    edges = int(counts.sum())
    generator = torch.Generator().manual_seed(seed)
    centre = torch.arange(atoms).repeat_interleave(counts)
    neighbor = torch.randint(max(atoms, 1), (edges,), generator=generator)
    order = torch.argsort(centre * max(atoms, 1) + neighbor, stable=True)
    neighbor = neighbor[order]

    def pointers(index: Tensor) -> Tensor:
        return torch.nn.functional.pad(torch.bincount(index, minlength=atoms).cumsum(0), (1, 0))

    return Graph(
        positions=torch.zeros(atoms, 3, dtype=torch.float64),
        types=torch.zeros(atoms, dtype=torch.int64),
        edge_index=torch.stack([centre, neighbor]),
        edge_shift=torch.zeros(edges, 3, dtype=torch.float64),
        structure=torch.zeros(atoms, dtype=torch.int64),
        structure_ptr=torch.tensor([0, atoms]),
        row_ptr=pointers(centre),
        by_neighbor=torch.argsort(neighbor, stable=True),
        neighbor_ptr=pointers(neighbor),
        local=torch.ones(atoms, dtype=torch.bool),
    )
