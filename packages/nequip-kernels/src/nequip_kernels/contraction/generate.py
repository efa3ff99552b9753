"""The Triton source of one contraction: forward, first and second derivative, derivative by the path weights.

Names in the generated code, components numbered:

    T features, w environment weights, Y harmonics, W path weights, v environment, g gradient of the output
    x, c, y, z: directions in which T, w, Y, v move (second derivative); n: gradient of v

With C(T, v)_k = sum W value T_i v_j, and C', C'' its adjoints by T and v:

forward    v = sum_edges w Y                          out = C(T, v)
backward   dT = C'(g, v)        n = sum_edges C''(g, T)             dw = n Y         dY = sum_channels n w
double     of S = <x, dT> + <c, dw> + <y, dY>, where z = sum_edges (c Y + w y):
           S by g = C(x, v) + C(T, z)     by T = C'(g, z)     b = sum_edges C''(g, x)
           S by w = b Y + n y             by Y = sum_channels (b w + n c)
by W       sum_edges (g C(T, v) without W); of S: the same with C(x, v) + C(T, z)

In a first layer (`factors`) T = w0 Y, so dw0 = dT Y, and so on; its share of dY is stored beside the other.

Where the even scalars are wanted apart (`scalars_apart`), component 0 of the output is stored twice and its gradient is
the sum of two: they meet in registers, where else a tensor as large as the output would be read and written.
"""

from __future__ import annotations

from collections.abc import Callable

from nequip_kernels.contraction.table import Table, factor
from nequip_kernels.emit import Kernel, module, plus

HOISTED = 24
"""Path weights that stay in registers; more are read where they are used."""


def source(table: Table) -> str:
    """A file with the functions contract_forward, _backward, _double_backward, _by_weights and _double_by_weights."""
    spec = table.spec
    about = (
        f"allegro.contract/1: {'+'.join(map(str, spec.irreps_in))} to {'+'.join(map(str, spec.irreps_out))}, "
        f"l_max {spec.l_max}, {len(table.terms)} terms."
    )
    return module(
        about,
        (
            _forward(table),
            _backward(table),
            _double_backward(table),
            _by_weights(table, double=False),
            _by_weights(table, double=True),
        ),
    )


def _forward(table: Table) -> Kernel:
    spec = table.spec
    k = Kernel(
        "contract_forward",
        [*("features", "env_weights", "harmonics", "path_weights", "out", "environment"), *_apart(table, "scalars")],
        dtype_of="out",
    )
    k.this_atom()
    k.zeros("a", table.components)
    with k.edges():
        k.load_edges("w", "env_weights", table.degrees)
        k.load_numbers("Y", "harmonics", table.components)
        for j in range(table.components):
            k(f"a{j} += w{table.degree(j)} * Y{j}")
    k.sum_edges("v", "a", table.components, store="environment")
    _hoist_weights(k, table)
    with k.edges():
        if spec.factors:
            k.load_numbers("Y", "harmonics", table.components)
        _load_features(k, table, "T", "features")
        k.edge_rows("out", spec.dim_out)
        for component, paths in table.by_output():
            parts = []
            for path, terms in paths:
                k(_weight(table, path))
                parts.append(f"W{path} * ({plus(f'{t.value!r} * (T{t.i} * v{t.j})' for t in terms)})")
            _store_output(k, table, "out", "scalars", component, plus(parts))
    return k


def _backward(table: Table) -> Kernel:
    spec = table.spec
    k = Kernel(
        "contract_backward",
        [
            *("features", "env_weights", "harmonics", "path_weights", "environment", "grad"),
            *_apart(table, "scalar_grad"),
            *("d_features", "d_env_weights", "d_harmonics", "d_environment"),
        ],
        dtype_of="grad",
    )
    k.this_atom()
    k.load_atom("v", "environment", table.components)
    k.zeros("a", table.components)
    _hoist_weights(k, table)
    with k.edges():
        if spec.factors:
            k.load_numbers("Y", "harmonics", table.components)
            _slot(k, table, "d_harmonics", 0)
        _load_features(k, table, "T", "features")
        k.edge_rows("grad", spec.dim_out)
        k.zeros("d", spec.dim_in)
        for component, paths in table.by_output():
            _load_gradient(k, table, component)
            for path, terms in paths:
                k(_weight(table, path), f"h = W{path} * g{component}")
                for t in terms:
                    k(f"q = {t.value!r} * h", f"d{t.i} += q * v{t.j}", f"a{t.j} += q * T{t.i}")
        k.edge_rows("d_features", table.stored_in)
        if spec.factors:
            for degree, members in _factors(table):
                k.store_edge("d_features", degree, plus(f"d{i} * Y{i}" for i in members))
            _sum_channels(k, table, "d_harmonics", lambda i: f"d{i} * T_{factor(i)}")
        else:
            for i in range(spec.dim_in):
                k.store_edge("d_features", i, f"d{i}")
    k.sum_edges("n", "a", table.components, store="d_environment")
    with k.edges():
        k.load_edges("w", "env_weights", table.degrees)
        k.load_numbers("Y", "harmonics", table.components)
        _slot(k, table, "d_harmonics", -1)
        k.edge_rows("d_env_weights", table.degrees)
        for degree, members in _degrees(table):
            k.store_edge("d_env_weights", degree, plus(f"n{j} * Y{j}" for j in members))
        _sum_channels(k, table, "d_harmonics", lambda j: f"n{j} * w{table.degree(j)}")
    return k


def _double_backward(table: Table) -> Kernel:
    spec = table.spec
    k = Kernel(
        "contract_double_backward",
        [
            *("features", "env_weights", "harmonics", "path_weights", "environment", "grad"),
            *_apart(table, "scalar_grad"),
            *("d_environment", "to_features", "to_env_weights", "to_harmonics", "of_grad"),
            *_apart(table, "of_scalar_grad"),
            *("of_features", "of_env_weights", "of_harmonics", "to_environment"),
        ],
        dtype_of="grad",
    )
    k.this_atom()
    k.zeros("a", table.components)
    with k.edges():
        _load_directions(k, table)
        for j in range(table.components):
            k(f"a{j} += c{table.degree(j)} * Y{j} + w{table.degree(j)} * y{j}")
    k.sum_edges("z", "a", table.components, store="to_environment")
    k.load_atom("v", "environment", table.components)
    k.zeros("a", table.components)
    _hoist_weights(k, table)
    with k.edges():
        if spec.factors:
            k.load_numbers("Y", "harmonics", table.components)
            k.load_numbers("y", "to_harmonics", table.components)
            _slot(k, table, "of_harmonics", 0)
            k.zeros("p", spec.dim_in)
        _load_features(k, table, "T", "features")
        _load_features(k, table, "x", "to_features", along="T")
        k.zeros("d", spec.dim_in)
        k.edge_rows("grad", spec.dim_out)
        k.edge_rows("of_grad", spec.dim_out)
        for component, paths in table.by_output():
            _load_gradient(k, table, component)
            parts = []
            for path, terms in paths:
                k(_weight(table, path), f"h = W{path} * g{component}")
                parts.append(f"W{path} * ({plus(f'{t.value!r} * (x{t.i} * v{t.j} + T{t.i} * z{t.j})' for t in terms)})")
                for t in terms:
                    k(f"q = {t.value!r} * h", f"d{t.i} += q * z{t.j}", f"a{t.j} += q * x{t.i}")
                    if spec.factors:
                        k(f"p{t.i} += q * v{t.j}")
            _store_output(k, table, "of_grad", "of_scalar_grad", component, plus(parts))
        k.edge_rows("of_features", table.stored_in)
        if spec.factors:
            for degree, members in _factors(table):
                k.store_edge("of_features", degree, plus(f"d{i} * Y{i} + p{i} * y{i}" for i in members))
            _sum_channels(k, table, "of_harmonics", lambda i: f"d{i} * T_{factor(i)} + p{i} * x_{factor(i)}")
        else:
            for i in range(spec.dim_in):
                k.store_edge("of_features", i, f"d{i}")
    k.sum_edges("b", "a", table.components)
    k.load_atom("n", "d_environment", table.components)
    with k.edges():
        _load_directions(k, table)
        _slot(k, table, "of_harmonics", -1)
        k.edge_rows("of_env_weights", table.degrees)
        for degree, members in _degrees(table):
            k.store_edge("of_env_weights", degree, plus(f"b{j} * Y{j} + n{j} * y{j}" for j in members))
        _sum_channels(k, table, "of_harmonics", lambda j: f"b{j} * w{table.degree(j)} + n{j} * c{table.degree(j)}")
    return k


def _by_weights(table: Table, *, double: bool) -> Kernel:
    """Sums of a fixed number of programs, [programs, paths, U], which the caller adds up in order."""
    spec = table.spec
    tensors = ["features", "harmonics", "environment", "grad", *_apart(table, "scalar_grad")]
    if double:
        tensors += ["to_features", "to_harmonics", "to_environment"]
    k = Kernel(
        f"contract_{'double_' if double else ''}by_weights", [*tensors, "sums"], dtype_of="grad", sizes=["atoms"]
    )
    k.zeros("s", table.paths)
    with k.block("for i in range(tl.program_id(0).to(tl.int64), atoms, tl.num_programs(0)):"):
        k("start = tl.load(row_ptr + i)", "stop = tl.load(row_ptr + i + 1)", "on_atom = channel[None, :]")
        k.load_atom("v", "environment", table.components)
        if double:
            k.load_atom("z", "to_environment", table.components)
        with k.edges():
            if spec.factors:
                k.load_numbers("Y", "harmonics", table.components)
                if double:
                    k.load_numbers("y", "to_harmonics", table.components)
            _load_features(k, table, "T", "features")
            if double:
                _load_features(k, table, "x", "to_features", along="T")
            k.edge_rows("grad", spec.dim_out)
            for component, paths in table.by_output():
                _load_gradient(k, table, component)
                for path, terms in paths:
                    product = "x{0.i} * v{0.j} + T{0.i} * z{0.j}" if double else "T{0.i} * v{0.j}"
                    k(f"s{path} += g{component} * ({plus(f'{t.value!r} * ({product.format(t)})' for t in terms)})")
    k(f"sums_at = sums + tl.program_id(0).to(tl.int64) * ({table.paths} * U) + u")
    for path in range(table.paths):
        k(f"tl.store(sums_at + {path} * U, tl.sum(s{path}, 0), mask=channel)")
    return k


def _apart(table: Table, argument: str) -> list[str]:
    """An argument of kernels whose even scalars are wanted apart."""
    return [argument] if table.spec.scalars_apart else []


def _store_output(k: Kernel, table: Table, tensor: str, scalars: str, component: int, value: str) -> None:
    """A component of the output, or of what moves as the output does; the first one to the scalars too."""
    if component == 0 and table.spec.scalars_apart:
        k(f"r = {value}")
        k.edge_rows(scalars, 1)
        k.store_edge(scalars, 0, "r")
        value = "r"
    k.store_edge(tensor, component, value)


def _load_gradient(k: Kernel, table: Table, component: int) -> None:
    """A component of the output's gradient; the first one has that of the scalars in it."""
    k.load_edge(f"g{component}", "grad", component)
    if component == 0 and table.spec.scalars_apart:
        k.edge_rows("scalar_grad", 1)
        k.load_edge("gs", "scalar_grad", 0)
        k("g0 += gs")


def _load_features(k: Kernel, table: Table, name: str, tensor: str, along: str = "") -> None:
    """``name0``, ...: the features of the tile; of a first layer from their factors ``name_0``, ... and harmonics.

    Args:
        k: is written to.
        table: of the contraction.
        name: T, or x for the direction in which T moves.
        tensor: argument that holds them.
        along: with factors, the features whose harmonics move too.
    """
    if not table.spec.factors:
        k.load_edges(name, tensor, table.spec.dim_in)
        return
    k.load_edges(f"{name}_", tensor, table.stored_in)
    for i in range(table.spec.dim_in):
        degree = factor(i)
        k(f"{name}{i} = {name}_{degree} * Y{i}" + (f" + {along}_{degree} * y{i}" if along else ""))


def _load_directions(k: Kernel, table: Table) -> None:
    """The environment weights and harmonics of the tile, and the directions in which they move."""
    k.load_edges("w", "env_weights", table.degrees)
    k.load_edges("c", "to_env_weights", table.degrees)
    k.load_numbers("Y", "harmonics", table.components)
    k.load_numbers("y", "to_harmonics", table.components)


def _hoist_weights(k: Kernel, table: Table) -> None:
    if table.paths <= HOISTED:
        for path in range(table.paths):
            k(_load_weight(table, path))


def _weight(table: Table, path: int) -> str:
    """A path's weight where it is used."""
    return f"# path {path}" if table.paths <= HOISTED else _load_weight(table, path)


def _load_weight(table: Table, path: int) -> str:
    if table.spec.coupled:
        return f"W{path} = tl.load(path_weights + {path} * U + u, mask=channel, other=0.0)[None, :]"
    return f"W{path} = tl.load(path_weights + {path})"


def _slot(k: Kernel, table: Table, tensor: str, number: int) -> None:
    """Where this program's sums over channels go: [edges, blocks of channels (times 2 with factors), components]."""
    per_block = 2 if table.spec.factors else 1
    k(
        f"slot = tl.program_id(1) * {per_block} + {number % per_block}",
        f"{tensor}_at = {tensor} + (e * (tl.num_programs(1) * {per_block}) + slot) * {table.components}",
    )


def _sum_channels(k: Kernel, table: Table, tensor: str, value: Callable[[int], str]) -> None:
    k.channel_sums(tensor, table.components, ((j, value(j)) for j in range(table.components)))


def _degrees(table: Table) -> list[tuple[int, list[int]]]:
    """Each environment weight with its components."""
    return [(d, [j for j in range(table.components) if table.degree(j) == d]) for d in range(table.degrees)]


def _factors(table: Table) -> list[tuple[int, list[int]]]:
    """Each factor of a first layer's features with its components."""
    return [(d, list(range(d**2, (d + 1) ** 2))) for d in range(table.stored_in)]
