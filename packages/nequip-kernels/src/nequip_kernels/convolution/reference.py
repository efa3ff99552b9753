"""The operators of the convolution in plain torch, term by term: what they do with tensors of the CPU.

Arguments and results are those of `nequip_kernels.convolution.operators`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nequip_core.ops.segment import sum_bags
from nequip_kernels.convolution.table import Group, Route, Table

Columns = Sequence[Tensor]
"""One [edges, channels] or [edges, 1] for each component."""


def product(route: Route, h: Columns, harmonics: Columns) -> list[Tensor]:
    """P(H, Y), a tensor for each component of the result."""
    sums: dict[int, Tensor] = {}
    for t in route.terms:
        term = t.value * (h[t.i] * harmonics[t.j])
        sums[t.k] = sums[t.k] + term if t.k in sums else term
    return [sums[k] for k in range(route.components)]


class Inputs:
    """What every operator needs of its arguments."""

    def __init__(self, table: Table, harmonics: Tensor, neighbor: Tensor, row_ptr: Tensor) -> None:
        self.table, self.neighbor, self.row_ptr = table, neighbor, row_ptr
        edges = torch.arange(harmonics.shape[0], device=row_ptr.device)
        self.centre = torch.searchsorted(row_ptr, edges, right=True) - 1
        self.Y = columns(harmonics)

    def features(self, h: Tensor, group: Group) -> Columns:
        """Those of the edges' neighbours."""
        block = h.narrow(1, group.h, group.components * group.channels).index_select(0, self.neighbor)
        return torch.unflatten(block, 1, (group.components, group.channels)).unbind(1)

    def gradients(self, grad: Tensor, group: Group, route: Route) -> Columns:
        """Of a path's result, for each edge."""
        rows = grad.index_select(0, self.centre)
        return [rows.narrow(1, route.out + k * route.stride, group.channels) for k in range(route.components)]

    def to_centres(self, parts: dict[int, Tensor]) -> Tensor:
        """Sums over the edges of each atom of columns that are keyed by their place, [atoms, dim_out]."""
        return sum_bags(torch.cat([parts[place] for place in sorted(parts)], dim=1), self.centre, self.row_ptr)


def columns(numbers: Tensor) -> Columns:
    """[edges, components] apart."""
    return numbers.unsqueeze(2).unbind(1)


def weights_of(weights: Tensor, group: Group, route: Route) -> Tensor:
    """Those of one path."""
    return weights.narrow(1, route.weights, group.channels)


class Sums:
    """What is added up over paths: messages to neighbours, and harmonics."""

    def __init__(self, table: Table, like_edges: Tensor) -> None:
        self.table, self.like = table, like_edges
        self.messages: dict[int, Tensor] = {}
        self.harmonics: dict[int, Tensor] = {}

    def add(self, group: Group, route: Route, h: Columns, harmonics: Columns, gradients: Columns) -> None:
        """P' and P'' of one path."""
        for t in route.terms:
            place, scaled = group.h + t.i * group.channels, t.value * gradients[t.k]
            _add(self.messages, place, scaled * harmonics[t.j])
            _add(self.harmonics, t.j, (scaled * h[t.i]).sum(1, keepdim=True))

    def to_neighbors(self, neighbor: Tensor, by_neighbor: Tensor, neighbor_ptr: Tensor) -> Tensor:
        """[atoms, dim_in]."""
        edges, parts, place = self.like.shape[0], [], 0
        for irrep, channels in self.table.spec.irreps_in:
            for _ in range(irrep.dim):
                nothing = self.like.new_zeros(edges, channels)  # no path comes from this irrep
                parts.append(self.messages.get(place, nothing))
                place += channels
        return sum_bags(torch.cat(parts, dim=1), neighbor, neighbor_ptr, by_neighbor)

    def of_harmonics(self) -> Tensor:
        """[edges, components]."""
        nothing = self.like.new_zeros(self.like.shape[0], 1)
        return torch.cat([self.harmonics.get(j, nothing) for j in range(self.table.components)], dim=1)


def _add(sums: dict[int, Tensor], place: int, term: Tensor) -> None:
    sums[place] = sums[place] + term if place in sums else term


def forward(table: Table, h: Tensor, harmonics: Tensor, weights: Tensor, neighbor: Tensor, row_ptr: Tensor) -> Tensor:
    """Messages summed to their centres."""
    given = Inputs(table, harmonics, neighbor, row_ptr)
    parts: dict[int, Tensor] = {}
    for group in table.groups:
        H = given.features(h, group)
        for route in group.routes:
            R = weights_of(weights, group, route)
            for k, one in enumerate(product(route, H, given.Y)):
                parts[route.out + k * route.stride] = R * one
    return given.to_centres(parts)


def backward(
    table: Table,
    h: Tensor,
    harmonics: Tensor,
    weights: Tensor,
    grad: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by h, harmonics and weights."""
    given, sums = Inputs(table, harmonics, neighbor, row_ptr), Sums(table, harmonics)
    of_weights: dict[int, Tensor] = {}
    for group in table.groups:
        H = given.features(h, group)
        for route in group.routes:
            R, g = weights_of(weights, group, route), given.gradients(grad, group, route)
            sums.add(group, route, H, given.Y, [R * one for one in g])
            for one, other in zip(g, product(route, H, given.Y), strict=True):
                _add(of_weights, route.weights, one * other)
    d_weights = torch.cat([of_weights[place] for place in sorted(of_weights)], dim=1)
    return sums.to_neighbors(neighbor, by_neighbor, neighbor_ptr), sums.of_harmonics(), d_weights


def double_backward(
    table: Table,
    h: Tensor,
    harmonics: Tensor,
    weights: Tensor,
    grad: Tensor,
    to_h: Tensor,
    to_harmonics: Tensor,
    to_weights: Tensor,
    neighbor: Tensor,
    row_ptr: Tensor,
    by_neighbor: Tensor,
    neighbor_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by grad, h, harmonics and weights of sums of the first derivatives times directions."""
    given, sums = Inputs(table, harmonics, neighbor, row_ptr), Sums(table, harmonics)
    y = columns(to_harmonics)
    of_weights: dict[int, Tensor] = {}
    parts: dict[int, Tensor] = {}
    for group in table.groups:
        H, A = given.features(h, group), given.features(to_h, group)
        for route in group.routes:
            R, B = weights_of(weights, group, route), weights_of(to_weights, group, route)
            g = given.gradients(grad, group, route)
            still = product(route, H, given.Y)
            moved = [a + b for a, b in zip(product(route, A, given.Y), product(route, H, y), strict=True)]
            for k in range(route.components):
                parts[route.out + k * route.stride] = R * moved[k] + B * still[k]
                _add(of_weights, route.weights, g[k] * moved[k])
            # P' takes R with y and B with Y; P'' takes R with A and B with H.
            sums.add(group, route, A, y, [R * one for one in g])
            sums.add(group, route, H, given.Y, [B * one for one in g])
    of_h = sums.to_neighbors(neighbor, by_neighbor, neighbor_ptr)
    by_weights = torch.cat([of_weights[place] for place in sorted(of_weights)], dim=1)
    return given.to_centres(parts), of_h, sums.of_harmonics(), by_weights
