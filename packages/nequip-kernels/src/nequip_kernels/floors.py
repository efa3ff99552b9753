"""What a kernel must move and compute at the least: its speed is judged by how near it comes.

Bytes are those that reach memory once; what one program reads again (environment, path weights, row pointers) and what
the second-level cache serves is not counted, so that a floor is a floor. Operations are products and sums of the terms.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from nequip_core.ops.contracts import (
    ChainSpec,
    ContractionSpec,
    ConvolutionSpec,
    RadialConvolutionSpec,
    ScalarMLPSpec,
    TabulatedConvolutionSpec,
)
from nequip_kernels.contraction.table import Table as ContractionTable
from nequip_kernels.convolution.table import Table as ConvolutionTable


class Floor(NamedTuple):
    """Of one call.

    Attributes:
        bytes: read and written.
        operations: additions and multiplications.
        products: TF32 products of tensor cores for each of these; 0: they are not done by tensor cores.
    """

    bytes: int
    operations: int
    products: int = 0

    def seconds(self, bandwidth: float, rate: float, tensor_rate: float = float("inf")) -> float:
        """The longer of both.

        Args:
            bandwidth: bytes / s of a copy.
            rate: operations / s.
            tensor_rate: TF32 operations / s of tensor cores.
        """
        computing = self.products * self.operations / tensor_rate if self.products else self.operations / rate
        return max(self.bytes / bandwidth, computing)


def of_contraction(
    spec: ContractionSpec, atoms: int, edges: int, itemsize: int, degrees: int | None = None
) -> dict[str, Floor]:
    """The floor of every operator of a contraction, by its name.

    Args:
        spec: of the contraction.
        atoms: of the graph.
        edges: likewise.
        itemsize: bytes of a number.
        degrees: environment weights; default: one for each degree.
    """
    table = ContractionTable(spec, spec.l_max + 1 if degrees is None else degrees)
    T, w, terms = table.stored_in, table.degrees, len(table.terms)
    out = spec.dim_out + int(spec.scalars_apart)
    harmonics = edges * table.components
    environment = atoms * table.components * spec.channels

    def floor(of_edges: int, of_harmonics: int, of_environment: int, per_term: int) -> Floor:
        numbers = edges * spec.channels * of_edges + of_harmonics * harmonics + of_environment * environment
        return Floor(itemsize * numbers, per_term * terms * edges * spec.channels)

    return {
        "forward": floor(T + w + out, 1, 1, 3),
        "backward": floor(2 * T + out + 2 * w, 2, 2, 5),
        "double_backward": floor(3 * T + 2 * out + 3 * w, 3, 3, 10),
        "by_weights": floor(T + out, int(spec.factors), 1, 4),
        "double_by_weights": floor(2 * T + out, 2 * int(spec.factors), 2, 6),
    }


def of_chain(spec: ChainSpec, atoms: int, edges: int, itemsize: int) -> dict[str, Floor]:
    """The floor of every operator of a chain, with one environment weight for each degree, by its name."""
    tables = [ContractionTable(layer, layer.l_max + 1) for layer in spec.layers]
    first, last = tables[0], spec.layers[-1]
    f, terms, layers = first.stored_in, sum(len(table.terms) for table in tables), len(tables)
    out, passed = last.dim_out + int(last.scalars_apart), f if spec.passes else 0
    harmonics = edges * first.components
    environment = atoms * first.components * last.channels

    def floor(of_edges: int, of_harmonics: int, of_environments: int, operations: int) -> Floor:
        numbers = edges * last.channels * of_edges + of_harmonics * harmonics + of_environments * environment
        return Floor(itemsize * numbers, operations * edges * last.channels)

    return {
        "chain_forward": floor(f + out, 1, layers, 3 * terms),
        "chain_backward": floor(2 * f + out + passed, 2, 2 * layers, 5 * terms + 3 * (terms - len(tables[-1].terms))),
        "environment_forward": floor(first.degrees, 1, 1, 2 * first.components),
        "environment_backward": floor(2 * first.degrees, 2, 1, 4 * first.components),
    }


def of_convolution(spec: ConvolutionSpec, atoms: int, edges: int, itemsize: int) -> dict[str, Floor]:
    """The floor of every operator of a convolution, by its name; features come from the cache but once."""
    table = ConvolutionTable(spec)
    weights, harmonics = edges * spec.num_weights, edges * table.components
    h, out = atoms * table.dim_in, atoms * table.dim_out
    products = edges * sum(group.terms * group.channels for group in table.groups)
    return {
        "forward": Floor(itemsize * (weights + harmonics + h + out), 3 * products),
        "backward": Floor(itemsize * (2 * (weights + harmonics + h) + out), 8 * products),
        "double_backward": Floor(itemsize * (3 * (weights + harmonics + h) + 2 * out), 18 * products),
    }


def of_tabulated(spec: TabulatedConvolutionSpec, atoms: int, edges: int, itemsize: int) -> dict[str, Floor]:
    """The floor of a convolution with weights from a table, which like features comes from the cache but once."""
    table = ConvolutionTable(spec.convolution)
    edge, harmonics = edges * (4 + itemsize), edges * table.components
    h, out = atoms * table.dim_in, atoms * table.dim_out
    rows = (spec.intervals + 1) * 4 * spec.convolution.num_weights
    weights = edges * spec.convolution.num_weights
    products = edges * sum(group.terms * group.channels for group in table.groups)
    return {
        "forward": Floor(edge + itemsize * (harmonics + rows + h + out), 3 * products + 6 * weights),
        "backward": Floor(edge + itemsize * (edges + 2 * (harmonics + h) + rows + out), 8 * products + 12 * weights),
    }


def of_radial(spec: RadialConvolutionSpec, atoms: int, edges: int, itemsize: int) -> dict[str, Floor]:
    """The floor of a convolution that stores no weights: forward, backward, and of each irrep's part forward_0, ...

    Operations are those of the products with the radial network's last layer, three of them with TF32; the terms of the
    couplings come beside, and are few.
    """
    table = ConvolutionTable(spec.convolution)
    edge, tensor = edges * (spec.width + table.components), 3 if itemsize == 4 else 0

    def both(h: int, out: int, weights: int) -> tuple[Floor, Floor]:
        products = 2 * edges * spec.width * weights
        return (
            Floor(itemsize * (edge + atoms * (h + out)), products, tensor),
            Floor(itemsize * (2 * edge + atoms * (2 * h + out)), 2 * products, tensor),
        )

    found = dict(
        zip(("forward", "backward"), both(table.dim_in, table.dim_out, spec.convolution.num_weights), strict=True)
    )
    for n, group in enumerate(table.groups):
        out = sum(route.components for route in group.routes) * group.channels
        parts = both(group.components * group.channels, out, len(group.routes) * group.channels)
        found |= dict(zip((f"forward_{n}", f"backward_{n}"), parts, strict=True))
    return found


def of_mlp(spec: ScalarMLPSpec, rows: int, itemsize: int) -> dict[str, Floor]:
    """The floor of every operator of a network of scalars; its hidden layers are computed again for a derivative."""
    fan_in, out = spec.widths[0], spec.widths[-1]
    products = [one * other for one, other in itertools.pairwise(spec.widths)]
    tensor = 3 if itemsize == 4 else 0
    return {
        "forward": Floor(itemsize * rows * (fan_in + out), 2 * rows * sum(products), tensor),
        "backward": Floor(
            itemsize * rows * (2 * fan_in + out + sum(spec.inputs[: spec.passes])),
            2 * rows * (2 * sum(products) - products[-1]),
            tensor,
        ),
    }
