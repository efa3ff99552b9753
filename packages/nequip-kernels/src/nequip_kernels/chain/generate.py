"""The Triton source of a chain of contractions and of its environments: value and first derivative.

Names in the generated code, m the number of a layer, components numbered:

    f factors, Y harmonics, W environment's path weights, v environment, T features before a layer, g gradient
    n gradient of an environment, d gradient of the features before a layer

With C_m(T, v)_k = sum W value T_i v_j, and C_m', C_m'' its adjoints by T and v:

environment           v = sum_edges w Y
environment_backward  dw = n Y    dY = sum_channels n w
chain                 T_0 = f Y    T_{m+1} = C_m(T_m, v_m)    out = T_last
chain_backward        T_m again    d_last = g    d_m = C_m'(d_{m+1}, v_m)    n_m = sum_edges C_m''(d_{m+1}, T_m)
                      df = d_0 Y    dY = sum_channels d_0 f

A chain may pass its factors on (`passes`): the gradient of who takes them from there is added within chain_backward,
where autograd would read and write both once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from nequip_kernels.contraction.generate import HOISTED
from nequip_kernels.contraction.table import Table, factor
from nequip_kernels.emit import Kernel, module, plus


def source(tables: Sequence[Table], *, passes: bool) -> str:
    """A file with the functions chain_forward, chain_backward, environment_forward and environment_backward.

    Args:
        tables: of the layers, in order.
        passes: whether the factors are passed on.
    """
    last = tables[-1].spec
    about = f"allegro.chain/1: {len(tables)} layers to {'+'.join(map(str, last.irreps_out))}, l_max {last.l_max}."
    kernels = [_forward(tables), _backward(tables, passes=passes)]
    return module(about, [*kernels, _environment(tables[0]), _environment_backward(tables[0])])


def _arguments(tables: Sequence[Table]) -> list[str]:
    numbers = range(len(tables))
    return ["factors", "harmonics", *(f"environment{m}" for m in numbers), *(f"path_weights{m}" for m in numbers)]


def _forward(tables: Sequence[Table]) -> Kernel:
    last = tables[-1].spec
    written = ["out", *(["scalars"] if last.scalars_apart else [])]
    k = Kernel("chain_forward", [*_arguments(tables), *written], dtype_of="out")
    k.this_atom()
    _load_atoms(k, tables)
    with k.edges():
        _load_features(k, tables)
        _make_features(k, tables)
        k.edge_rows("out", last.dim_out)
        m = len(tables) - 1
        for component, paths in tables[-1].by_output():
            k(f"r = {_coupled(k, tables, m, paths)}")
            k.store_edge("out", component, "r")
            if component == 0 and last.scalars_apart:
                k.edge_rows("scalars", 1)
                k.store_edge("scalars", 0, "r")
    return k


def _backward(tables: Sequence[Table], *, passes: bool) -> Kernel:
    last = tables[-1].spec
    given = ["grad", *(["scalar_grad"] if last.scalars_apart else []), *(["factors_grad"] if passes else [])]
    written = ["d_factors", "d_harmonics", *(f"d_environment{m}" for m in range(len(tables)))]
    k = Kernel("chain_backward", [*_arguments(tables), *given, *written], dtype_of="grad")
    k.this_atom()
    _load_atoms(k, tables)
    for m, table in enumerate(tables):
        k.zeros(f"a{m}_", table.components)
    with k.edges():
        _load_features(k, tables)
        _make_features(k, tables)
        m = len(tables) - 1
        k.load_edges(f"d{m + 1}_", "grad", last.dim_out)
        if last.scalars_apart:
            k.edge_rows("scalar_grad", 1)
            k.load_edge("gs", "scalar_grad", 0)
            k(f"d{m + 1}_0 += gs")
        for m in reversed(range(len(tables))):
            k.zeros(f"d{m}_", tables[m].spec.dim_in)
            for component, paths in tables[m].by_output():
                for path, terms in paths:
                    k(*_weight(tables, m, path), f"h = W{m}_{path} * d{m + 1}_{component}")
                    for t in terms:
                        k(
                            f"q = {t.value!r} * h",
                            f"d{m}_{t.i} += q * v{m}_{t.j}",
                            f"a{m}_{t.j} += q * T{m}_{t.i}",
                        )
        first = tables[0]
        k.edge_rows("d_factors", first.stored_in)
        if passes:
            k.load_edges("s", "factors_grad", first.stored_in)
        for degree in range(first.stored_in):
            members = range(degree**2, (degree + 1) ** 2)
            terms_of = [f"d0_{i} * Y{i}" for i in members] + ([f"s{degree}"] if passes else [])
            k.store_edge("d_factors", degree, plus(terms_of))
        _slot(k, first, "d_harmonics")
        k.channel_sums(
            "d_harmonics", first.components, ((i, f"d0_{i} * f{factor(i)}") for i in range(first.components))
        )
    for m, table in enumerate(tables):
        k.sum_edges("n", f"a{m}_", table.components, store=f"d_environment{m}")
    return k


def _environment(table: Table) -> Kernel:
    k = Kernel("environment_forward", ["env_weights", "harmonics", "environment"], dtype_of="environment")
    k.this_atom()
    k.zeros("a", table.components)
    with k.edges():
        k.load_edges("w", "env_weights", table.degrees)
        k.load_numbers("Y", "harmonics", table.components)
        for j in range(table.components):
            k(f"a{j} += w{table.degree(j)} * Y{j}")
    k.sum_edges("v", "a", table.components, store="environment")
    return k


def _environment_backward(table: Table) -> Kernel:
    tensors = ["env_weights", "harmonics", "grad", "d_env_weights", "d_harmonics"]
    k = Kernel("environment_backward", tensors, dtype_of="grad")
    k.this_atom()
    k.load_atom("n", "grad", table.components)
    with k.edges():
        k.load_edges("w", "env_weights", table.degrees)
        k.load_numbers("Y", "harmonics", table.components)
        k.edge_rows("d_env_weights", table.degrees)
        for degree in range(table.degrees):
            members = [j for j in range(table.components) if table.degree(j) == degree]
            k.store_edge("d_env_weights", degree, plus(f"n{j} * Y{j}" for j in members))
        _slot(k, table, "d_harmonics")
        k.channel_sums(
            "d_harmonics", table.components, ((j, f"n{j} * w{table.degree(j)}") for j in range(table.components))
        )
    return k


def _load_atoms(k: Kernel, tables: Sequence[Table]) -> None:
    """The environments, and the path weights that have room in registers."""
    for m, table in enumerate(tables):
        k.load_atom(f"v{m}_", f"environment{m}", table.components)
        if _hoisted(tables, m):
            for path in range(table.paths):
                k(_load_weight(table, m, path))


def _load_features(k: Kernel, tables: Sequence[Table]) -> None:
    """Factors and harmonics, and T_0."""
    k.load_edges("f", "factors", tables[0].stored_in)
    k.load_numbers("Y", "harmonics", tables[0].components)
    for i in range(tables[0].spec.dim_in):
        k(f"T0_{i} = f{factor(i)} * Y{i}")


def _make_features(k: Kernel, tables: Sequence[Table]) -> None:
    """T_1 and so on, up to what goes into the last layer."""
    for m, table in enumerate(tables[:-1]):
        for component, paths in table.by_output():
            k(f"T{m + 1}_{component} = {_coupled(k, tables, m, paths)}")


def _coupled(k: Kernel, tables: Sequence[Table], m: int, paths: Sequence[tuple[int, Sequence[object]]]) -> str:
    """A component of what layer ``m`` gives; path weights that are not in registers are loaded first."""
    parts = []
    for path, terms in paths:
        k(*_weight(tables, m, path))
        parts.append(f"W{m}_{path} * ({plus(f'{t.value!r} * (T{m}_{t.i} * v{m}_{t.j})' for t in terms)})")  # type: ignore[attr-defined]
    return plus(parts)


def _hoisted(tables: Sequence[Table], m: int) -> bool:
    """Whether the path weights of a layer stay in registers."""
    return sum(table.paths for table in tables[: m + 1]) <= HOISTED


def _weight(tables: Sequence[Table], m: int, path: int) -> list[str]:
    return [] if _hoisted(tables, m) else [_load_weight(tables[m], m, path)]


def _load_weight(table: Table, m: int, path: int) -> str:
    if table.spec.coupled:
        return f"W{m}_{path} = tl.load(path_weights{m} + {path} * U + u, mask=channel, other=0.0)[None, :]"
    return f"W{m}_{path} = tl.load(path_weights{m} + {path})"


def _slot(k: Kernel, table: Table, tensor: str) -> None:
    """[edges, blocks of channels, components]: one for each program of an edge."""
    k(f"{tensor}_at = {tensor} + (e * tl.num_programs(1) + tl.program_id(1)) * {table.components}")
