"""The definition of right for every contract, in plain PyTorch, in two forms that tests hold equal.

* dense: few large operators, for eager execution. The harmonics are contracted with the Wigner table first (no channels
  in it), then one batched matrix product takes all components and channels.
* unrolled: the non-zeros of the tables as sums and products of [edges, channels], which a compiler fuses; for tracing.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from nequip_core.graph import Graph
from nequip_core.o3 import Irrep, wigner_3j
from nequip_core.ops.contracts import ConvolutionSpec, Path, RadialConvolutionSpec, TabulatedConvolutionSpec
from nequip_core.ops.segment import gather, segment_sum


def refuses(spec: ConvolutionSpec | RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reference serves every specification, dtype and device."""
    return None


def make_convolution(spec: ConvolutionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The reference of nequip.convolution/1."""
    return TwoForms(DenseConvolution(spec), UnrolledConvolution(spec)).to(device=device, dtype=dtype)


def make_radial_convolution(spec: RadialConvolutionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The reference of nequip.radial_convolution/1, which stores the weights."""
    return RadialConvolution(make_convolution(spec.convolution, dtype, device))


class RadialConvolution(nn.Module):
    """nequip.radial_convolution/1 by an operator of nequip.convolution/1."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        hidden: Float[Tensor, "edges width"],
        matrix: Float[Tensor, "width num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts."""
        result: Tensor = self.convolution(h, harmonics, hidden @ matrix, graph)
        return result


def make_tabulated_convolution(spec: TabulatedConvolutionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The reference of nequip.tabulated_convolution/1, which stores the weights."""
    return TabulatedConvolution(make_convolution(spec.convolution, dtype, device))


class TabulatedConvolution(nn.Module):
    """nequip.tabulated_convolution/1 by an operator of nequip.convolution/1."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        place: Int[Tensor, "edges"],
        fraction: Float[Tensor, "edges"],
        table: Float[Tensor, "rows 4 num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts."""
        result: Tensor = self.convolution(h, harmonics, of_table(table, place, fraction), graph)
        return result


def of_table(
    table: Float[Tensor, "rows 4 num_weights"], place: Int[Tensor, "edges"], fraction: Float[Tensor, "edges"]
) -> Float[Tensor, "edges num_weights"]:
    """The weights of each edge."""
    first, second, third, fourth = table.index_select(0, place).unbind(1)
    t = fraction.unsqueeze(1)
    return first + t * (second + t * (third + t * fourth))


class TwoForms(nn.Module):
    """One operator, dense where it is executed, unrolled where it is traced."""

    def __init__(self, dense: nn.Module, unrolled: nn.Module) -> None:
        super().__init__()
        self.dense, self.unrolled = dense, unrolled

    def forward(self, *arguments: Any) -> Any:
        """See nequip_core.ops.contracts."""
        return self.unrolled(*arguments) if is_traced() else self.dense(*arguments)


def is_traced() -> bool:
    """Whether torch writes down what is computed, for a compiler, rather than only computing it."""
    return get_proxy_mode() is not None or torch.compiler.is_compiling()


def coupling_table(path: Path) -> Float[Tensor, "m1 m2 m3"]:
    """sqrt(2 l3 + 1) times the Wigner 3j symbols of a path, float64."""
    return math.sqrt(path.irrep_out.dim) * wigner_3j(path.irrep_in.l, path.l_edge, path.irrep_out.l)


def _groups(spec: ConvolutionSpec) -> list[tuple[Path, ...]]:
    """Runs of paths with the same input irrep and the same degree of the result: one matrix product each."""
    return [tuple(run) for _, run in groupby(spec.paths, key=lambda path: (path.irrep_in, path.irrep_out.l))]


def _sum_to_centres(messages: Tensor, graph: Graph) -> Tensor:
    return segment_sum(messages, graph.edge_index[0], graph.row_ptr)


def _gather_neighbors(h: Tensor, graph: Graph) -> Tensor:
    return gather(h, graph.edge_index[1], graph.neighbor_ptr, graph.by_neighbor)


class DenseConvolution(nn.Module):
    """nequip.convolution/1 by batched matrix products."""

    def __init__(self, spec: ConvolutionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.groups = _groups(spec)
        # One table [(l_max + 1)^2, (all m3) (all m1)] gives every path's matrix [m3, m1] of every edge at once.
        columns = []
        for group in self.groups:
            irrep = group[0].irrep_in
            block = torch.zeros((spec.l_max + 1) ** 2, len(group), group[0].irrep_out.dim, irrep.dim).double()
            for n, path in enumerate(group):
                start = path.l_edge**2
                block[start : start + 2 * path.l_edge + 1, n] = coupling_table(path).permute(1, 2, 0)
            columns.append(block.flatten(1))
        self.register_buffer("table", torch.cat(columns, dim=1), persistent=False)
        self.table: Tensor
        self.table_sizes = [column.shape[1] for column in columns]
        self.weight_sizes = [len(group) * spec.irreps_in.channels[group[0].irrep_in] for group in self.groups]

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        weights: Float[Tensor, "edges num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts."""
        spec = self.spec
        neighbors = spec.irreps_in.split(_gather_neighbors(h, graph))
        matrices = (harmonics @ self.table).split_with_sizes(self.table_sizes, dim=1)
        sums: dict[Irrep, list[Tensor]] = {irrep: [] for irrep, _ in spec.irreps_out}
        for group, matrix, weight in zip(
            self.groups, matrices, weights.split_with_sizes(self.weight_sizes, dim=1), strict=True
        ):
            irrep_in, paths, m3 = group[0].irrep_in, len(group), group[0].irrep_out.dim
            message = torch.unflatten(matrix, 1, (paths * m3, irrep_in.dim)) @ neighbors[irrep_in]
            message = torch.unflatten(message, 1, (paths, m3)) * torch.unflatten(weight, 1, (paths, 1, -1))
            for path, total in zip(group, _sum_to_centres(message, graph).unbind(1), strict=True):
                sums[path.irrep_out].append(total)
        return spec.irreps_out.join(
            {irrep: torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] for irrep, parts in sums.items()}
        )


class UnrolledConvolution(nn.Module):
    """nequip.convolution/1 with every non-zero of the Wigner tables written out."""

    def __init__(self, spec: ConvolutionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.terms = [nonzeros(path) for path in spec.paths]
        self.weight_sizes = [spec.irreps_in.channels[path.irrep_in] for path in spec.paths]

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        weights: Float[Tensor, "edges num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """See nequip_core.ops.contracts."""
        spec = self.spec
        neighbors = spec.irreps_in.split(_gather_neighbors(h, graph))
        # Taken apart at once, since each single selection would have a derivative of full size.
        features = {irrep: block.unbind(1) for irrep, block in neighbors.items()}
        columns = harmonics.unsqueeze(2).unbind(1)
        parts: dict[Irrep, list[Tensor]] = {irrep: [] for irrep, _ in spec.irreps_out}
        for path, terms, weight in zip(
            spec.paths, self.terms, weights.split_with_sizes(self.weight_sizes, dim=1), strict=True
        ):
            rows: dict[int, Tensor] = {}
            for m1, m2, m3, value in terms:
                term = value * columns[path.l_edge**2 + m2] * features[path.irrep_in][m1]
                rows[m3] = rows[m3] + term if m3 in rows else term
            parts[path.irrep_out].append(torch.stack([weight * rows[m3] for m3 in range(path.irrep_out.dim)], dim=1))
        messages = spec.irreps_out.join({irrep: torch.cat(blocks, dim=-1) for irrep, blocks in parts.items()})
        return _sum_to_centres(messages, graph)


def nonzeros(path: Path) -> list[tuple[int, int, int, float]]:
    """(m1, m2, m3, value) of a path's table."""
    table = coupling_table(path)
    places = table.abs().gt(1e-12).nonzero().tolist()
    return [(m1, m2, m3, float(table[m1, m2, m3])) for m1, m2, m3 in places]
