"""The Triton source of one convolution with weights from a table: forward and first derivative.

Names in the generated code are those of `nequip_kernels.convolution.generate`; besides, for path r,

    t fraction of the interval    c0 ... c3 its row of the table    R = c0 + t (c1 + t (c2 + t c3))    S = dR / dt

forward    o = sum_edges R P(H, Y)
backward   d = sum_paths P'(R g, Y)    s = sum_paths P''(R g, H)    dt = sum_paths sum_channels S <g, P(H, Y)>

A row of the table is read where a weight would be: 4 numbers for one, but from the second-level cache, which all edges
share. Nothing of an edge is as wide as its weights.
"""

from __future__ import annotations

from nequip_kernels.convolution.generate import (
    _load_features,
    _load_gradients,
    _store_messages,
    _store_results,
    _sum,
    _terms,
    _zero_results,
    collect,
)
from nequip_kernels.convolution.table import Group, Route, Table
from nequip_kernels.emit import Kernel, module

SWEEPS = ("forward", "backward")


def source(table: Table) -> str:
    """A file with convolve_collect, and tabulated_forward_0, tabulated_backward_0 for each group."""
    spec = table.spec
    about = f"nequip.tabulated_convolution/1: {spec.irreps_in} to {spec.irreps_out}, l_max {spec.l_max}."
    kernels = [collect(table)]
    for n, group in enumerate(table.groups):
        kernels += [_forward(table, group, n), _backward(table, group, n)]
    return module(about, kernels)


def _forward(table: Table, group: Group, n: int) -> Kernel:
    tensors = ["h", "harmonics", "place", "fraction", "table", "neighbor", "out"]
    k = Kernel(f"tabulated_forward_{n}", tensors, dtype_of="out")
    k.this_atom()
    _zero_results(k, group)
    with k.edges():
        _load_features(k, table, group, "H", "h")
        k.load_numbers("Y", "harmonics", table.components)
        _find_row(k, table)
        for r, route in enumerate(group.routes):
            _load_weight(k, table, r, route)
            for component in range(route.components):
                product = _sum(route, component, lambda t: f"{t.value!r} * (H{t.i} * Y{t.j})")
                k(f"o{r}_{component} += R{r} * ({product})")
    _store_results(k, table, group, "out")
    return k


def _backward(table: Table, group: Group, n: int) -> Kernel:
    tensors = ["h", "harmonics", "place", "fraction", "table", "grad", "neighbor", "messages", "d_edges"]
    k = Kernel(f"tabulated_backward_{n}", tensors, dtype_of="grad", constants=("SLOT", "SLOTS"))
    k.this_atom()
    _load_gradients(k, table, group)
    with k.edges():
        _load_features(k, table, group, "H", "h")
        k.load_numbers("Y", "harmonics", table.components)
        _find_row(k, table)
        k.zeros("d", group.components)
        k.zeros("s", table.components + 1)
        along = table.components  # where the derivative by the fraction is added up
        for r, route in enumerate(group.routes):
            _load_weight(k, table, r, route)
            k("S = c1 + t * (2.0 * c2 + t * (3.0 * c3))")
            for component in range(route.components):
                k(f"q = R{r} * g{r}_{component}")
                for term in _terms(route, component):
                    k(
                        f"d{term.i} += {term.value!r} * (q * Y{term.j})",
                        f"s{term.j} += {term.value!r} * (q * H{term.i})",
                    )
                product = _sum(route, component, lambda t: f"{t.value!r} * (H{t.i} * Y{t.j})")
                k(f"s{along} += S * (g{r}_{component} * ({product}))")
        _store_messages(k, table, group)
        k("slot = SLOT + tl.program_id(1)", f"d_edges_at = d_edges + (e * SLOTS + slot) * {along + 1}")
        k.channel_sums("d_edges", along + 1, ((j, f"s{j}") for j in range(along + 1)))
    return k


def _find_row(k: Kernel, table: Table) -> None:
    """The row of the tile's intervals, and where the edges are in them."""
    width = 4 * table.spec.num_weights
    k(
        "row = tl.load(place + e, mask=edge, other=0).to(tl.int64)",
        "t = tl.load(fraction + e, mask=edge, other=0.0)[:, None]",
        f"table_at = table + (row * {width})[:, None] + u[None, :]",
    )


def _load_weight(k: Kernel, table: Table, r: int, route: Route) -> None:
    for power in range(4):
        place = power * table.spec.num_weights + route.weights
        k(f"c{power} = tl.load(table_at + {place}, mask=m, other=0.0)")
    k(f"R{r} = c0 + t * (c1 + t * (c2 + t * c3))")
