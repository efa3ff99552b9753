"""The reference of allegro.contract/1, in two forms that tests hold equal.

* dense: the environment is contracted with the Wigner tables first, atom by atom, which leaves one small matrix per
  atom and channel; then one batched matrix product takes all edges of an atom. Nothing of size edges x components^2
  exists. The edges of an atom are padded to the longest row, so this form is for eager execution.
* unrolled: the non-zeros of the tables as sums and products of [edges, channels], which a compiler fuses; for tracing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from nequip_core.graph import Graph, longest_row
from nequip_core.o3 import Irrep
from nequip_core.ops.contracts import ChainSpec, ContractionSpec
from nequip_core.ops.kept import Kept
from nequip_core.ops.reference import TwoForms, coupling_table, nonzeros
from nequip_core.ops.segment import gather, segment_sum


def refuses(spec: ContractionSpec | ChainSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reference serves every specification, dtype and device."""
    return None


def make_contraction(spec: ContractionSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The reference of allegro.contract/1."""
    return TwoForms(DenseContraction(spec), UnrolledContraction(spec)).to(device=device, dtype=dtype)


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
    parts = weights.split(1, dim=1)
    return torch.cat([parts[degree].expand(-1, 2 * degree + 1, -1) for degree in range(l_max + 1)], dim=1)


def make_chain(spec: ChainSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The reference of allegro.chain/1."""
    return UnrolledChain(spec)


class DenseContraction(nn.Module):
    """allegro.contract/1 by batched matrix products."""

    def __init__(self, spec: ContractionSpec) -> None:
        super().__init__()
        self.spec = spec
        # [m2, m1, k, path]: given irreps and degree, a path is unique, so each place belongs to one path at most.
        table = torch.zeros((spec.l_max + 1) ** 2, spec.dim_in, spec.dim_out, len(spec.paths), dtype=torch.float64)
        ins, outs = _starts(spec.irreps_in), _starts(spec.irreps_out)
        for n, path in enumerate(spec.paths):
            m2 = slice(path.l_edge**2, (path.l_edge + 1) ** 2)
            m1 = slice(ins[path.irrep_in], ins[path.irrep_in] + path.irrep_in.dim)
            k = slice(outs[path.irrep_out], outs[path.irrep_out] + path.irrep_out.dim)
            table[m2, m1, k, n] = coupling_table(path).permute(1, 0, 2)
        self.register_buffer("table", table.flatten(0, 2), persistent=False)
        self.table: Tensor
        degree_of = torch.tensor([degree for degree in range(spec.l_max + 1) for _ in range(2 * degree + 1)])
        own = degree_of.unsqueeze(1) == torch.arange(spec.l_max + 1)
        self.register_buffer("own_degree", own.double().unsqueeze(2), persistent=False)
        self.own_degree: Tensor
        self.weighted = Kept()

    def forward(
        self,
        features: Float[Tensor, "edges components_in channels"],
        env_weights: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        path_weights: Float[Tensor, "paths channels_or_1"],
        graph: Graph,
    ) -> tuple[Tensor, ...]:
        """See nequip_core.ops.contracts."""
        spec = self.spec
        rows = Rows.of(graph)
        environment = self._environment(rows.pad(env_weights), rows.pad(harmonics))
        matrices = self._matrices(environment, path_weights)
        if spec.factors:
            features = _by_component(features, spec.l_max) * harmonics.unsqueeze(2)
        # Batched over atoms and channels: [edges of the atom, m1] @ [m1, k].
        padded = rows.pad(features).permute(0, 3, 1, 2) @ matrices
        out = rows.unpad(padded.permute(0, 2, 3, 1))
        return (out, environment, out[:, 0]) if spec.scalars_apart else (out, environment)

    def _environment(self, weights: Tensor, harmonics: Tensor) -> Tensor:
        """[atoms, components, channels] from padded [atoms, row, degrees, channels] and [atoms, row, components]."""
        sums = harmonics.mT @ weights.flatten(2)
        if weights.shape[2] == 1:
            return sums
        # Every component with every degree's weights, of which its own are kept: one product, and this one is small.
        return (torch.unflatten(sums, 2, weights.shape[2:]) * self.own_degree).sum(2)

    def _matrices(self, environment: Tensor, path_weights: Tensor) -> Tensor:
        """[atoms, channels, m1, k]: what the environment does to the features."""
        spec = self.spec
        weighted = self.weighted(self._weigh, self.table, path_weights)
        if spec.coupled:
            # Batched over channels: [atoms, m2] @ [m2, m1 k].
            matrices = (environment.permute(2, 0, 1) @ weighted.permute(2, 0, 1)).transpose(0, 1)
        else:
            matrices = environment.mT @ weighted.squeeze(2)
        return torch.unflatten(matrices, 2, (spec.dim_in, spec.dim_out))

    def _weigh(self, table: Tensor, path_weights: Tensor) -> Tensor:
        """[m2, m1 k, channels or 1]: the tables with the weights of their paths."""
        return torch.unflatten(table @ path_weights, 0, ((self.spec.l_max + 1) ** 2, -1))


class Rows:
    """The edges of each atom side by side, padded with zeros to the longest row.

    Attributes:
        shape: (atoms, longest).
        place: [edges] of each edge in the flattened table; None: no row is padded.
    """

    def __init__(self, shape: tuple[int, int], place: Int[Tensor, "edges"] | None) -> None:
        self.shape, self.place = shape, place

    @classmethod
    def of(cls, graph: Graph) -> Rows:
        """From the row pointers; all layers of a model share them."""
        rows: Rows | None = _rows.get(graph.row_ptr)
        if rows is None:
            rows = _rows[graph.row_ptr] = cls._from_pointers(graph)
        return rows

    @classmethod
    def _from_pointers(cls, graph: Graph) -> Rows:
        atoms, edges = graph.types.shape[0], graph.edge_shift.shape[0]
        longest = longest_row(graph)
        if atoms * longest == edges:
            return cls((atoms, longest), None)
        centre = graph.edge_index[0]
        start = graph.row_ptr.index_select(0, centre)
        return cls((atoms, longest), torch.arange(edges, device=centre.device) - start + centre * longest)

    def pad(self, x: Float[Tensor, "edges *rest"]) -> Float[Tensor, "atoms row *rest"]:
        """Rows of edges to rows of atoms."""
        if self.place is None:
            return torch.unflatten(x, 0, self.shape)
        return _Pad.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]

    def unpad(self, x: Float[Tensor, "atoms row *rest"]) -> Float[Tensor, "edges *rest"]:
        """The inverse of `pad`, and its adjoint."""
        if self.place is None:
            return x.flatten(0, 1)
        return _Unpad.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]


_rows: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By the row pointers of a graph, which is a value: kept as long as these live."""


class _Pad(torch.autograd.Function):
    """Each edge has one place, so the derivative is a gather, which is deterministic and quick."""

    # With a setup_context of its own, torch inspects the signature at every call.
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        assert rows.place is not None
        ctx.rows = rows
        padded = x.new_zeros(math.prod(rows.shape), *x.shape[1:])
        return torch.unflatten(padded.index_copy_(0, rows.place, x), 0, rows.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _Unpad.apply(grads[0], ctx.rows), None  # type: ignore[no-untyped-call]


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        assert rows.place is not None
        ctx.rows = rows
        return x.flatten(0, 1).index_select(0, rows.place)

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
    ) -> tuple[Tensor, ...]:
        """See nequip_core.ops.contracts."""
        spec = self.spec
        environment = _environment(env_weights, harmonics, spec.l_max, graph)
        if spec.factors:
            features = _by_component(features, spec.l_max) * harmonics.unsqueeze(2)
        columns = self.couple(features.unbind(1), environment, path_weights, graph)
        out = torch.stack(columns, dim=1)
        return (out, environment, columns[0]) if spec.scalars_apart else (out, environment)

    def couple(
        self,
        columns: Sequence[Float[Tensor, "edges channels"]],
        environment: Float[Tensor, "atoms components channels"],
        path_weights: Float[Tensor, "paths channels_or_1"],
        graph: Graph,
    ) -> list[Float[Tensor, "edges channels"]]:
        """The contraction with environments that are there, component by component."""
        around = gather(environment, graph.edge_index[0], graph.row_ptr).unbind(1)
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
        return [rows[k] for k in range(self.spec.dim_out)]


def _environment(env_weights: Tensor, harmonics: Tensor, l_max: int, graph: Graph) -> Tensor:
    """[atoms, components, channels]"""
    weighted = _by_component(env_weights, l_max) * harmonics.unsqueeze(2)
    return segment_sum(weighted, graph.edge_index[0], graph.row_ptr)


def mixed(
    sums: Float[Tensor, "atoms components width"], mixing: Float[Tensor, "components width channels"] | None
) -> Float[Tensor, "atoms components channels"]:
    """The environment, from sums of hidden layers; without ``mixing`` they are it."""
    return sums if mixing is None else torch.einsum("nmh,mhu->nmu", sums, mixing)


class UnrolledChain(nn.Module):
    """allegro.chain/1, one layer after the other."""

    def __init__(self, spec: ChainSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = [UnrolledContraction(layer) for layer in spec.layers]

    def forward(
        self,
        factors: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        environments: Sequence[Float[Tensor, "atoms components channels"]],
        env_weights: Float[Tensor, "edges env_degrees channels"],
        path_weights: Sequence[Float[Tensor, "paths channels_or_1"]],
        graph: Graph,
        mixing: Float[Tensor, "components width channels"] | None = None,
    ) -> tuple[Tensor, ...]:
        """See nequip_core.ops.contracts."""
        last = self.spec.layers[-1]
        own = mixed(_environment(env_weights, harmonics, last.l_max, graph), mixing)
        columns: Sequence[Tensor] = (_by_component(factors, last.l_max) * harmonics.unsqueeze(2)).unbind(1)
        for layer, environment, weights in zip(self.layers, [*environments, own], path_weights, strict=True):
            columns = layer.couple(columns, environment, weights, graph)
        scalars = (columns[0],) if last.scalars_apart else ()
        return torch.stack(list(columns), dim=1), own, *scalars, *((factors,) if self.spec.passes else ())
