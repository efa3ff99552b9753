"""The Triton source of one convolution: forward, first and second derivative, each a function for every input irrep.

Names in the generated code, components numbered, r the number of the path:

    H features of the neighbour, Y harmonics, R weights of the path, o result, g gradient of the result
    A, y, B: directions in which H, Y, R move (second derivative)

With P(H, Y)_k = sum value H_i Y_j, and P', P'' its adjoints by H and Y:

forward    o = sum_edges R P(H, Y)
backward   d = sum_paths P'(R g, Y)    s = sum_paths P''(R g, H)    dR = <g, P(H, Y)>
double     of S = <A, d> + <y, s> + <B, dR>:
           S by g = sum_edges (R (P(A, Y) + P(H, y)) + B P(H, Y))
           S by H = P'(R g, y) + P'(B g, Y)    by Y = P''(R g, A) + P''(B g, H)    by R = <g, P(A, Y) + P(H, y)>

What belongs to the neighbour (d) is written for each edge, and `collect` adds it up in the order of the edges by
neighbour: no atomics, and less to read than a gather of gradients for each edge.
"""

from __future__ import annotations

from collections.abc import Callable

from nequip_kernels.convolution.table import Group, Route, Table, Term
from nequip_kernels.emit import Kernel, module, plus

SWEEPS = ("forward", "backward", "double_backward")


def source(table: Table) -> str:
    """A file with convolve_collect, and convolve_forward_0, _backward_0, _double_backward_0 for each group."""
    spec = table.spec
    about = f"nequip.convolution/1: {spec.irreps_in} to {spec.irreps_out}, l_max {spec.l_max}."
    kernels = [collect(table)]
    for n, group in enumerate(table.groups):
        kernels += [_forward(table, group, n), _backward(table, group, n), _double_backward(table, group, n)]
    return module(about, kernels)


def _forward(table: Table, group: Group, n: int) -> Kernel:
    k = Kernel(f"convolve_forward_{n}", ["h", "harmonics", "weights", "neighbor", "out"], dtype_of="out")
    k.this_atom()
    _zero_results(k, group)
    with k.edges():
        _load_features(k, table, group, "H", "h")
        k.load_numbers("Y", "harmonics", table.components)
        _weight_rows(k, table, "weights")
        for r, route in enumerate(group.routes):
            _load_weight(k, r, route, "R", "weights")
            for component in range(route.components):
                product = _sum(route, component, lambda t: f"{t.value!r} * (H{t.i} * Y{t.j})")
                k(f"o{r}_{component} += R{r} * ({product})")
    _store_results(k, table, group, "out")
    return k


def _backward(table: Table, group: Group, n: int) -> Kernel:
    tensors = ["h", "harmonics", "weights", "grad", "neighbor", "messages", "d_harmonics", "d_weights"]
    k = Kernel(f"convolve_backward_{n}", tensors, dtype_of="grad", constants=("SLOT", "SLOTS"))
    k.this_atom()
    _load_gradients(k, table, group)
    with k.edges():
        _load_features(k, table, group, "H", "h")
        k.load_numbers("Y", "harmonics", table.components)
        _weight_rows(k, table, "weights", "d_weights")
        k.zeros("d", group.components)
        k.zeros("s", table.components)
        for r, route in enumerate(group.routes):
            _load_weight(k, r, route, "R", "weights")
            k("b = tl.zeros((BE, BU), dtype)")
            for component in range(route.components):
                k(f"q = R{r} * g{r}_{component}")
                for t in _terms(route, component):
                    k(f"d{t.i} += {t.value!r} * (q * Y{t.j})", f"s{t.j} += {t.value!r} * (q * H{t.i})")
                product = _sum(route, component, lambda t: f"{t.value!r} * (H{t.i} * Y{t.j})")
                k(f"b += g{r}_{component} * ({product})")
            k(f"tl.store(d_weights_at + {route.weights}, b, mask=m)")
        _store_messages(k, table, group)
        _sum_channels(k, table, "d_harmonics")
    return k


def _double_backward(table: Table, group: Group, n: int) -> Kernel:
    tensors = [
        *("h", "harmonics", "weights", "grad", "to_h", "to_harmonics", "to_weights", "neighbor"),
        *("of_grad", "messages", "of_harmonics", "of_weights"),
    ]
    k = Kernel(f"convolve_double_backward_{n}", tensors, dtype_of="grad", constants=("SLOT", "SLOTS"))
    k.this_atom()
    _load_gradients(k, table, group)
    _zero_results(k, group)
    with k.edges():
        _load_features(k, table, group, "H", "h")
        _load_features(k, table, group, "A", "to_h")
        k.load_numbers("Y", "harmonics", table.components)
        k.load_numbers("y", "to_harmonics", table.components)
        _weight_rows(k, table, "weights", "to_weights", "of_weights")
        k.zeros("d", group.components)
        k.zeros("s", table.components)
        for r, route in enumerate(group.routes):
            _load_weight(k, r, route, "R", "weights")
            _load_weight(k, r, route, "B", "to_weights")
            k("b = tl.zeros((BE, BU), dtype)")
            for component in range(route.components):
                still = _sum(route, component, lambda t: f"{t.value!r} * (H{t.i} * Y{t.j})")
                moved = _sum(route, component, lambda t: f"{t.value!r} * (A{t.i} * Y{t.j} + H{t.i} * y{t.j})")
                k(
                    f"f = {moved}",
                    f"o{r}_{component} += R{r} * f + B{r} * ({still})",
                    f"b += g{r}_{component} * f",
                    f"q = R{r} * g{r}_{component}",
                    f"p = B{r} * g{r}_{component}",
                )
                for t in _terms(route, component):
                    k(
                        f"d{t.i} += {t.value!r} * (q * y{t.j} + p * Y{t.j})",
                        f"s{t.j} += {t.value!r} * (q * A{t.i} + p * H{t.i})",
                    )
            k(f"tl.store(of_weights_at + {route.weights}, b, mask=m)")
        _store_messages(k, table, group)
        _sum_channels(k, table, "of_harmonics")
    _store_results(k, table, group, "of_grad")
    return k


def collect(table: Table) -> Kernel:
    """Rows of edges [edges, U] to their neighbours; ``row_ptr`` is that of the edges by neighbour."""
    k = Kernel("convolve_collect", ["messages", "by_neighbor", "out"], dtype_of="out")
    k.this_atom()
    k("a = tl.zeros((BE, BU), dtype)")
    with k.edges():
        k(
            "row = tl.load(by_neighbor + e, mask=edge, other=0)",
            "a += tl.load(messages + (row * U)[:, None] + u[None, :], mask=m, other=0.0)",
        )
    k("tl.store(out + i * U + u[None, :], tl.sum(a, 0)[None, :], mask=on_atom)")
    return k


def _terms(route: Route, component: int) -> list[Term]:
    return [term for term in route.terms if term.k == component]


def _sum(route: Route, component: int, write: Callable[[Term], str]) -> str:
    return plus(map(write, _terms(route, component)))


def _load_features(k: Kernel, table: Table, group: Group, name: str, tensor: str) -> None:
    """Those of the tile's neighbours."""
    if name == "H":
        k("near = tl.load(neighbor + e, mask=edge, other=0)")
    k(f"{tensor}_at = {tensor} + (near * {table.dim_in} + {group.h})[:, None] + u[None, :]")
    for i in range(group.components):
        k(f"{name}{i} = tl.load({tensor}_at + {i} * U, mask=m, other=0.0)")


def _weight_rows(k: Kernel, table: Table, *tensors: str) -> None:
    for tensor in tensors:
        k(f"{tensor}_at = {tensor} + (e * {table.spec.num_weights})[:, None] + u[None, :]")


def _load_weight(k: Kernel, r: int, route: Route, name: str, tensor: str) -> None:
    k(f"{name}{r} = tl.load({tensor}_at + {route.weights}, mask=m, other=0.0)")


def _zero_results(k: Kernel, group: Group) -> None:
    for r, route in enumerate(group.routes):
        k.zeros(f"o{r}_", route.components)


def _places(group: Group) -> list[tuple[str, int]]:
    """The number of each component of each path's result, and its place in an atom's row."""
    return [
        (f"{r}_{component}", route.out + component * route.stride)
        for r, route in enumerate(group.routes)
        for component in range(route.components)
    ]


def _store_results(k: Kernel, table: Table, group: Group, tensor: str) -> None:
    k(f"{tensor}_at = {tensor} + i * {table.dim_out} + u[None, :]")
    for number, place in _places(group):
        k(f"tl.store({tensor}_at + {place}, tl.sum(o{number}, 0)[None, :], mask=on_atom)")


def _load_gradients(k: Kernel, table: Table, group: Group) -> None:
    k(f"grad_at = grad + i * {table.dim_out} + u[None, :]")
    for number, place in _places(group):
        k(f"g{number} = tl.load(grad_at + {place}, mask=on_atom, other=0.0)")


def _store_messages(k: Kernel, table: Table, group: Group) -> None:
    k(f"messages_at = messages + (e * {table.dim_in} + {group.h})[:, None] + u[None, :]")
    for i in range(group.components):
        k.store_edge("messages", i, f"d{i}")


def _sum_channels(k: Kernel, table: Table, tensor: str) -> None:
    """[edges, SLOTS, components]: one for each program of an edge, this function's from SLOT on."""
    k("slot = SLOT + tl.program_id(1)", f"{tensor}_at = {tensor} + (e * SLOTS + slot) * {table.components}")
    k.channel_sums(tensor, table.components, ((j, f"s{j}") for j in range(table.components)))
