"""The reference of allegro.contract/1, in two forms that tests hold equal.

* dense: the environment is contracted with the Wigner tables first, atom by atom, which leaves one small matrix per
  atom and channel; then one batched matrix product takes all edges of an atom. Nothing of size edges x components^2
  exists. The edges of an atom are padded to the longest row, so this form is for eager execution.
* unrolled: the non-zeros of the tables as sums and products of [edges, channels], which a compiler fuses; for tracing.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.o3 import Irrep
from nequip_core.ops.contracts import ContractionSpec
from nequip_core.ops.reference import coupling_table, nonzeros
from nequip_core.ops.segment import gather, segment_sum


def refuses(spec: ContractionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reference serves every specification, dtype and device."""
    return None


def make_contraction(spec: ContractionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The reference of allegro.contract/1 for eager execution."""
    return DenseContraction(spec).to(device=device, dtype=dtype)


def _starts(irreps: tuple[Irrep, ...]) -> dict[Irrep, int]:
    """The first component of each irrep."""
    starts, total = {}, 0
    for irrep in irreps:
        starts[irrep] = total
        total += irrep.dim
    return starts


def _by_component(weights: Tensor, l_max: int) -> Tensor:
    """[edges, degrees, channels] to [edges, (l_max + 1)^2, channels]; one degree serves all."""
    if weights.shape[1] == 1:
        return weights
    return torch.cat([weights[:, [degree]].expand(-1, 2 * degree + 1, -1) for degree in range(l_max + 1)], dim=1)


class DenseContraction(nn.Module):
    """allegro.contract/1 by batched matrix products."""

    def __init__(self, spec: ContractionSpec) -> None:
        super().__init__()
        self.spec = spec
        ins, outs = _starts(spec.irreps_in), _starts(spec.irreps_out)
        # Of each path: the block [m1, k] it fills and its table [m1 k, m2].
        self.blocks = [
            (
                slice(ins[path.irrep_in], ins[path.irrep_in] + path.irrep_in.dim),
                slice(outs[path.irrep_out], outs[path.irrep_out] + path.irrep_out.dim),
                slice(path.l_edge**2, (path.l_edge + 1) ** 2),
            )
            for path in spec.paths
        ]
        for n, path in enumerate(spec.paths):
            table = coupling_table(path).permute(0, 2, 1).flatten(0, 1)
            self.register_buffer(f"table_{n}", table, persistent=False)

    def forward(
        self,
        features: Float[Tensor, "edges components_in channels"],
        env_weights: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        path_weights: Float[Tensor, "paths channels_or_1"],
        graph: Graph,
    ) -> tuple[Float[Tensor, "edges components_out channels"], Float[Tensor, "atoms components channels"]]:
        """See nequip_core.ops.contracts."""
        spec = self.spec
        rows = Rows.of(graph)
        environment = self._environment(rows.pad(env_weights), rows.pad(harmonics))
        matrices = self._matrices(environment, path_weights)
        if spec.factors:
            features = _by_component(features, spec.l_max) * harmonics.unsqueeze(2)
        # Batched over atoms and channels: [edges of the atom, m1] @ [m1, k].
        out = rows.pad(features).permute(0, 3, 1, 2) @ matrices
        return rows.unpad(out.permute(0, 2, 3, 1)), environment

    def _environment(self, weights: Tensor, harmonics: Tensor) -> Tensor:
        """[atoms, components, channels] from padded [atoms, row, degrees, channels] and [atoms, row, components]."""
        parts = [
            harmonics[:, :, degree**2 : (degree + 1) ** 2].mT @ weights[:, :, min(degree, weights.shape[2] - 1)]
            for degree in range(self.spec.l_max + 1)
        ]
        return torch.cat(parts, dim=1)

    def _matrices(self, environment: Tensor, path_weights: Tensor) -> Tensor:
        """[atoms, channels, m1, k]: what the environment does to the features."""
        spec = self.spec
        shape = environment.shape[0], spec.dim_in, spec.dim_out, spec.channels
        grid: dict[tuple[int, int], Tensor] = {}
        for n, (m1, k, m2) in enumerate(self.blocks):
            block = (self.get_buffer(f"table_{n}") @ environment[:, m2]) * path_weights[n]
            place = m1.start, k.start
            grid[place] = grid[place] + block if place in grid else block
        starts_in, starts_out = _starts(spec.irreps_in), _starts(spec.irreps_out)
        lines = []
        for irrep_in, row in starts_in.items():
            line = [
                torch.unflatten(grid[row, column], 1, (irrep_in.dim, irrep_out.dim))
                if (row, column) in grid
                else environment.new_zeros(shape[0], irrep_in.dim, irrep_out.dim, spec.channels)
                for irrep_out, column in starts_out.items()
            ]
            lines.append(torch.cat(line, dim=2))
        return torch.cat(lines, dim=1).permute(0, 3, 1, 2)


class Rows:
    """The edges of each atom side by side, padded with zeros to the longest row.

    Attributes:
        index: [atoms, longest] the edge in each place; any edge where the place is empty.
        filled: [atoms, longest] which places are edges.
        place: [edges] of each edge in the flattened table.
    """

    def __init__(self, index: Int[Tensor, "atoms row"], filled: Bool[Tensor, "atoms row"]) -> None:
        self.index, self.filled = index, filled
        self.uniform = bool(filled.all())
        self.place = filled.flatten().nonzero().squeeze(1)

    @classmethod
    def of(cls, graph: Graph) -> Rows:
        """From the row pointers."""
        counts = graph.row_ptr.diff()
        longest = int(counts.max()) if counts.numel() else 0
        offsets = torch.arange(longest, device=counts.device)
        filled = offsets < counts.unsqueeze(1)
        return cls((graph.row_ptr[:-1].unsqueeze(1) + offsets) * filled, filled)

    def pad(self, x: Float[Tensor, "edges *rest"]) -> Float[Tensor, "atoms row *rest"]:
        """Rows of edges to rows of atoms."""
        if self.uniform:
            return x.reshape(*self.index.shape, *x.shape[1:])
        return _Pad.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]

    def unpad(self, x: Float[Tensor, "atoms row *rest"]) -> Float[Tensor, "edges *rest"]:
        """The inverse of `pad`, and its adjoint."""
        if self.uniform:
            return x.flatten(0, 1)
        return _Unpad.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]


class _Pad(torch.autograd.Function):
    """Each edge has one place, so the derivative is a gather, which is deterministic and quick."""

    @staticmethod
    def forward(x: Tensor, rows: Rows) -> Tensor:
        padded = x.new_zeros(rows.index.numel(), *x.shape[1:])
        return torch.unflatten(padded.index_copy_(0, rows.place, x), 0, rows.index.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rows = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _Unpad.apply(grads[0], ctx.rows), None  # type: ignore[no-untyped-call]


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, rows: Rows) -> Tensor:
        return x.flatten(0, 1).index_select(0, rows.place)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rows = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _Pad.apply(grads[0], ctx.rows), None  # type: ignore[no-untyped-call]


class UnrolledContraction(nn.Module):
    """allegro.contract/1 with every non-zero of the Wigner tables written out."""

    def __init__(self, spec: ContractionSpec) -> None:
        super().__init__()
        self.spec = spec
        ins, outs = _starts(spec.irreps_in), _starts(spec.irreps_out)
        self.terms = [
            [
                (ins[path.irrep_in] + m1, path.l_edge**2 + m2, outs[path.irrep_out] + k, value)
                for m1, m2, k, value in nonzeros(path)
            ]
            for path in spec.paths
        ]

    def forward(
        self,
        features: Float[Tensor, "edges components_in channels"],
        env_weights: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        path_weights: Float[Tensor, "paths channels_or_1"],
        graph: Graph,
    ) -> tuple[Float[Tensor, "edges components_out channels"], Float[Tensor, "atoms components channels"]]:
        """See nequip_core.ops.contracts."""
        spec = self.spec
        centre = graph.edge_index[0], graph.row_ptr
        environment = segment_sum(_by_component(env_weights, spec.l_max) * harmonics.unsqueeze(2), *centre)
        around = gather(environment, *centre).unbind(1)
        if spec.factors:
            features = _by_component(features, spec.l_max) * harmonics.unsqueeze(2)
        columns = features.unbind(1)
        rows: dict[int, Tensor] = {}
        for path, terms in enumerate(self.terms):
            # The path's weight is applied once to each component of its result.
            sums: dict[int, Tensor] = {}
            for m1, m2, k, value in terms:
                term = value * columns[m1] * around[m2]
                sums[k] = sums[k] + term if k in sums else term
            for k, total in sums.items():
                weighted = path_weights[path] * total
                rows[k] = rows[k] + weighted if k in rows else weighted
        return torch.stack([rows[k] for k in range(spec.dim_out)], dim=1), environment
