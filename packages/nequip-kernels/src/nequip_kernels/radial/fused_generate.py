"""The Triton source of one convolution whose weights are never stored: forward, and first derivative.

Names as in `nequip_kernels.convolution.generate`, and of the radial layer:

    v hidden layer of the edges, w matrix, R = w v weights of a path, B = dR gradient of them

A program makes the weights of all paths from one input irrep at once, for a tile of an atom's edges, in registers: for
each path R, [BU, BE]. So channels are rows here and edges are columns: the matrix is the factor that tensor cores read
from registers, 64 rows of it whatever the number of edges in a tile, and it is split there; both factors lie in memory
as these cores read them, with the axis of the sums side by side (for R the matrix is transposed, once).

forward    o = sum_edges R P(H, Y)
backward   d = sum_paths P'(R g, Y)
           x_j = <g, dP/dY_j>, [BU, BE]: B = sum_j Y_j x_j    s_j = sum_paths sum_channels R x_j
           d_hidden = sum_paths w B

A component lives as long as it is needed: d_i is stored before features are loaded, x_j serves both sums and is gone,
harmonics and gradients come from the cache again. What paths from several irreps and blocks of channels give to
d_hidden is added up in memory, one after the other: no second tensor of that size, and one order of sums.

float32 products are three TF32 ones, of pieces that start from zero; see `nequip_kernels.mlp.generate`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from nequip_core.ops.contracts import RadialConvolutionSpec
from nequip_kernels.blocks import next_power_of_two
from nequip_kernels.convolution.generate import collect
from nequip_kernels.convolution.table import Group, Route, Table
from nequip_kernels.emit import HEAD, Kernel, plus
from nequip_kernels.mlp.generate import ROUNDED

SWEEPS = ("forward", "backward")

INNER = 32
"""Summed over at a time."""

WIDEST = 256
"""Largest width: a program has the gradient of a tile's hidden layer in registers."""


def source(spec: RadialConvolutionSpec, dtype: torch.dtype) -> str:
    """A file with convolve_collect, and radial_forward_0, radial_backward_0 for each group."""
    table, about = Table(spec.convolution), spec.convolution
    title = f"nequip.radial_convolution/1: {about.irreps_in} to {about.irreps_out}, l_max {about.l_max}, {spec.width}."
    kernels = [collect(table)]
    for n, group in enumerate(table.groups):
        writer = Writer(spec, dtype, table, group)
        kernels += [writer.forward(n), writer.backward(n)]
    texts = [ROUNDED, *(kernel.text for kernel in kernels)]
    return HEAD.format(about=title) + "".join(f"\n\n{text}\n" for text in texts)


def rows_of(width: int) -> int:
    """Rows of d_hidden that a product gives: as many as tensor cores take at once, or all."""
    return max(16, min(64, next_power_of_two(width)))


def channels_of(channels: int) -> int:
    """Largest block: as many as tensor cores take at once; half of it is summed over at a time."""
    return max(32, min(64, next_power_of_two(channels)))


class Writer:
    """Writes the functions of one input irrep."""

    def __init__(self, spec: RadialConvolutionSpec, dtype: torch.dtype, table: Table, group: Group) -> None:
        self.width, self.table, self.group = spec.width, table, group
        self.split, self.double = dtype == torch.float32, dtype == torch.float64
        self.routes = list(enumerate(group.routes))

    def forward(self, n: int) -> Kernel:
        """Messages summed to their centres."""
        tensors = ["h", "harmonics", "hidden", "transposed", "neighbor", "out"]
        k = Kernel(f"radial_forward_{n}", tensors, dtype_of="out")
        self._this_atom(k)
        for number, _ in self._places():
            k(f"o{number} = tl.zeros((BU, 1), dtype)")
        with k.block("for first in range(start, stop, BE):"):
            self._edges(k)
            self._channels(k)
            self._weights(k)
            self._features(k)
            for r, route in self.routes:
                self._harmonics(k, {term.j for term in route.terms})
                for component in range(route.components):
                    k(f"o{r}_{component} += tl.sum(R{r} * ({_message(route, component)}), 1)[:, None]")
        k(f"out_at = out + i * {self.table.dim_out} + u[:, None]")
        for number, place in self._places():
            k(f"tl.store(out_at + {place}, o{number}, mask=on_atom)")
        return k

    def backward(self, n: int) -> Kernel:
        """First derivatives by features, for each edge, by harmonics, and by the hidden layer."""
        tensors = ["h", "harmonics", "hidden", "matrix", "transposed", "grad", "neighbor"]
        tensors += ["messages", "d_harmonics", "d_hidden"]
        k = Kernel(f"radial_backward_{n}", tensors, dtype_of="grad", constants=("SLOT", "SLOTS", "ADD"))
        self._this_atom(k)
        components = self.table.components
        k(f"J: tl.constexpr = {next_power_of_two(components)}", "j = tl.arange(0, J)[None, :]")
        with k.block("for first in range(start, stop, BE):"):
            self._edges(k)
            k("sums = tl.zeros((BE, J), dtype)")
            with k.block("for c in range(0, U, BU):"):
                k("u = c + tl.arange(0, BU)", "channel = u < U", "if U % BU == 0:")
                k("    channel = tl.full([BU], 1, tl.int1)")
                self._channels(k)
                self._weights(k)
                k(f"grad_at = grad + i * {self.table.dim_out} + u[:, None]")
                self._store_messages(k)
                self._features(k)
                self._gradients_of_weights(k)
                self._hidden_gradient(k)
            k(f"to = d_harmonics + (e * SLOTS + SLOT)[:, None] * {components} + j")
            k(f"tl.store(to, sums, mask=edge[:, None] & (j < {components}))")
        return k

    # What both have

    def _this_atom(self, k: Kernel) -> None:
        k.this_atom()
        k("on_atom = (channel & (i >= 0))[:, None]", f"ck = tl.arange(0, {INNER})")

    def _edges(self, k: Kernel) -> None:
        """The tile's, with what belongs to them alone."""
        k("t = tl.arange(0, BE)", "e = (first + t).to(tl.int64)", "edge = e < stop")
        k("near = tl.load(neighbor + e, mask=edge, other=0)", f"harmonics_at = harmonics + e * {self.table.components}")

    def _harmonics(self, k: Kernel, some: Iterable[int]) -> None:
        """Loaded where they are used, from the cache: a thread has many edges, and few registers for each."""
        for j in sorted(some):
            k(f"Y{j} = tl.load(harmonics_at + {j}, mask=edge, other=0.0)[None, :]")

    def _channels(self, k: Kernel) -> None:
        k("m = channel[:, None] & edge[None, :]")

    def _weights(self, k: Kernel) -> None:
        """R of all paths."""
        k(
            f"v_at = (t * {self.width})[None, :] + ck[:, None]",
            f"w_at = transposed + ((u * {self.width})[:, None] + ck[None, :]).to(tl.int64)",
        )
        for r, _ in self.routes:
            k(f"R{r} = tl.zeros((BU, BE), dtype)")
        with k.block(f"for n in tl.range(0, {self.width}, {INNER}, num_stages=STAGES):"):
            inside = f"(n + ck < {self.width})"
            of_v, of_w = ("", "") if self.width % INNER == 0 else (f" & {inside}[:, None]", f" & {inside}[None, :]")
            k(f"v = tl.load(hidden + (first * {self.width} + n) + v_at, mask=edge[None, :]{of_v}, other=0.0)")
            self._parts(k, "v")
            for r, route in self.routes:
                start = route.weights * self.width
                k(f"w = tl.load(w_at + n + {start}, mask=channel[:, None]{of_w}, other=0.0)")
                self._add_product(k, f"R{r}", "w", "v")

    def _features(self, k: Kernel) -> None:
        """Those of the tile's neighbours.

        Where there is no neighbour, or no channel, R is zero, and so is what it takes the place of. What it is for: it
        tells Triton to have features in the threads that have R, where each product would be moved otherwise.
        """
        k(f"h_at = h + (near * {self.table.dim_in} + {self.group.h})[None, :] + u[:, None]")
        for i in range(self.group.components):
            k(f"H{i} = tl.where(m, tl.load(h_at + {i} * U, mask=m, other=0.0), R0)")

    def _places(self) -> list[tuple[str, int]]:
        """The number of each component of each path's result, and its place in an atom's row."""
        return [
            (f"{r}_{component}", route.out + component * route.stride)
            for r, route in self.routes
            for component in range(route.components)
        ]

    # Derivatives

    def _gradients(self, k: Kernel, r: int, route: Route) -> None:
        """Of a path's result; loaded where they are used, as harmonics."""
        for component in range(route.components):
            place = route.out + component * route.stride
            k(f"g{r}_{component} = tl.load(grad_at + {place}, mask=channel[:, None], other=0.0)")

    def _store_messages(self, k: Kernel) -> None:
        width, start = self.table.dim_in, self.group.h
        k(f"messages_at = (t * {width})[None, :] + u[:, None]")
        for i in range(self.group.components):
            k("d = tl.zeros((BU, BE), dtype)")
            for r, route in self.routes:
                self._harmonics(k, {term.j for term in route.terms if term.i == i})
                self._gradients(k, r, route)
                of_k: dict[int, list[str]] = {}
                for t in route.terms:
                    if t.i == i:
                        of_k.setdefault(t.k, []).append(f"{t.value!r} * Y{t.j}")
                if of_k:
                    k(f"d += R{r} * ({plus(f'g{r}_{one} * ({plus(parts)})' for one, parts in of_k.items())})")
            k(f"tl.store(messages + (first * {width} + {start} + {i} * U) + messages_at, d, mask=m)")

    def _gradients_of_weights(self, k: Kernel) -> None:
        """B of all paths; and the harmonics' sums, for which paths with the same harmonics are taken together."""
        begun: set[int] = set()
        for j in range(self.table.components):
            using = [(r, route) for r, route in self.routes if any(term.j == j for term in route.terms)]
            if not using:
                continue
            self._harmonics(k, [j])
            for place, (r, route) in enumerate(using):
                if r not in begun:
                    self._gradients(k, r, route)
                of_i: dict[int, list[str]] = {}
                for t in route.terms:
                    if t.j == j:
                        of_i.setdefault(t.i, []).append(f"{t.value!r} * g{r}_{t.k}")
                k(f"x = {plus(f'H{one} * ({plus(parts)})' for one, parts in of_i.items())}")
                k(f"B{r} {'+=' if r in begun else '='} Y{j} * x", f"q {'+=' if place else '='} R{r} * x")
                begun.add(r)
            k(f"sums = tl.where(j == {j}, sums + tl.sum(q, 0)[:, None], sums)")

    def _hidden_gradient(self, k: Kernel) -> None:
        """Added to what other irreps and blocks of channels gave."""
        rows, numbers = rows_of(self.width), self.table.spec.num_weights
        k(f"cn = tl.arange(0, {rows})", "half = tl.arange(0, BU // 2)")
        k(f"z_at = matrix + ((cn * {numbers})[:, None] + half[None, :] + c).to(tl.int64)")
        pieces = range(0, self.width, rows)
        k(*(f"y{n} = tl.zeros(({rows}, BE), dtype)" for n in pieces))

        def inside(n: int) -> str:
            return "" if n + rows <= self.width else f" & ({n} + cn < {self.width})[:, None]"

        for r, route in self.routes:  # one after the other: the factor B waits in shared memory, and is large
            k(f"b0, b1 = tl.split(tl.permute(tl.reshape(B{r}, (2, BU // 2, BE)), (1, 2, 0)))")
            for part in range(2):
                self._parts(k, f"b{part}")
                k(f"on = (c + {part} * (BU // 2) + half < U)[None, :]")
                for n in pieces:
                    at = f"z_at + ({n * numbers + route.weights} + {part} * (BU // 2))"
                    k(f"z = tl.load({at}, mask=on{inside(n)}, other=0.0)")
                    self._add_product(k, f"y{n}", "z", f"b{part}")
        k(f"to_at = (t * {self.width})[None, :] + cn[:, None]")
        for n in pieces:
            k(f"to = d_hidden + (first * {self.width} + {n}) + to_at", f"on = edge[None, :]{inside(n)}")
            # A thread reads what it has written itself, of the block of channels before.
            k(f"y{n} += tl.load(to, mask=on & ((ADD > 0) | (c > 0)), other=0.0)", f"tl.store(to, y{n}, mask=on)")

    # Products

    def _parts(self, k: Kernel, name: str) -> None:
        """The rounded number and the rest, where products are of such."""
        if self.split:
            k(f"{name}h = rounded({name})", f"{name}l = rounded({name} - {name}h)")

    def _add_product(self, k: Kernel, total: str, one: str, other: str) -> None:
        if not self.split:
            double = ", out_dtype=tl.float64" if self.double else ""
            k(f'{total} = tl.dot({one}, {other}, {total}, input_precision="ieee"{double})')
            return
        self._parts(k, one)
        tf32 = 'input_precision="tf32"'
        k(
            f"p = tl.dot({one}l, {other}h, {tf32})",
            f"p = tl.dot({one}h, {other}l, p, {tf32})",
            f"p = tl.dot({one}h, {other}h, p, {tf32})",
            f"{total} = {total} + p",
        )


def _message(route: Route, component: int) -> str:
    """A component of P(H, Y)."""
    of_i: dict[int, list[str]] = {}
    for t in route.terms:
        if t.k == component:
            of_i.setdefault(t.i, []).append(f"{t.value!r} * Y{t.j}")
    return plus(f"H{i} * ({plus(parts)})" for i, parts in of_i.items())
