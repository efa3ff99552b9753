"""The text of the Triton functions of one network of scalars: value, derivative by inputs, and packing of weights.

A program has a tile of BE rows. Widths are cut into pieces of BN: a hidden layer is one [BE, BN] tensor in registers
for each piece (``z0_0``, ``z0_1``, ...: layer, piece), so no hidden layer is ever stored. What is in memory, inputs or
gradients, is read in pieces of BK, one after the other and tensor after tensor: the first layer's product is the sum
over them. Weights come from the cache, as `nequip_kernels.mlp.packed` has them.

A product of float32 numbers is three of TF32 ones: of a factor's rounded number (``h``) and the rest (``l``), all but
the product of both rests. They are summed by tensor cores, which truncate, for one piece at a time; pieces are added
up outside of them, rounded to nearest.

The grid has one program more than there are whole tiles, since a grid may not be empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_kernels.emit import HEAD
from nequip_kernels.mlp.packed import INNER, UNIT, Matrix, filled, matrices

VALUE = {
    "silu": ["f = tl.sigmoid({z})", "a = {z} * f"],
    # tanh(log(1 + e^z)) = n / (n + 2) with n = e^z (e^z + 2), which is 1 from z = 20 on.
    "mish": ["f = tl.exp(tl.minimum({z}, 20.0))", "n = f * (f + 2.0)", "a = {z} * (n / (n + 2.0))"],
    "gelu": ["a = 0.5 * {z} * (1.0 + tl.erf({z} * 0.7071067811865476))"],
    "none": ["a = {z}"],
}
"""a = s(z)."""

SLOPE = {
    "silu": ["f = tl.sigmoid({z})", "a = f * (1.0 + {z} * (1.0 - f))"],
    "mish": [
        *("f = tl.exp(tl.minimum({z}, 20.0))", "n = f * (f + 2.0)"),
        "a = n / (n + 2.0) + {z} * (4.0 * (n + 1.0) / ((n + 2.0) * (n + 2.0))) * (f / (f + 1.0))",
    ],
    "gelu": [
        "a = 0.5 * (1.0 + tl.erf({z} * 0.7071067811865476)) + {z} * 0.3989422804014327 * tl.exp(-0.5 * {z} * {z})"
    ],
    "none": ["a = tl.full({z}.shape, 1.0, dtype)"],
}
"""a = s'(z)."""

ROUNDED = """\
@triton.jit
def rounded(x):
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 4096) & -8192).to(tl.float32, bitcast=True)
"""
"""To the nearest TF32 number."""

TILE = 32
"""Rows and columns of a program that packs weights."""


def source(spec: ScalarMLPSpec, dtype: torch.dtype, piece: int) -> str:
    """A file with ``mlp_forward``, ``mlp_backward`` and ``mlp_pack``; of a single layer, with ``mlp_by_matrix`` too.

    Of a network that passes inputs on, with ``mlp_backward_and_add``, which adds their gradients ``more0``, ...

    Args:
        spec: of the network.
        dtype: of all numbers.
        piece: BN, which decides how many tensors a hidden layer is.
    """
    about = (
        f"A network of the widths {list(spec.inputs)}, {list(spec.hidden)}, {list(spec.outputs)}, pieces of {piece}."
    )
    names = ["forward", "backward", *(["backward_and_add"] if spec.passes else [])]
    functions = [ROUNDED, *(Writer(spec, dtype, piece).write(name) for name in names)]
    functions += [pack(spec, dtype)] if spec.hidden else [pack(spec, dtype), by_matrix(spec, dtype)]
    return HEAD.format(about=about) + "".join(f"\n\n{text}\n" for text in functions)


class Writer:
    """One function that is being written."""

    def __init__(self, spec: ScalarMLPSpec, dtype: torch.dtype, piece: int) -> None:
        if UNIT % piece:
            raise ValueError(f"pieces of networks are of widths that divide {UNIT}, received {piece}.")
        self.spec, self.dtype, self.piece = spec, dtype, piece
        self.matrices = matrices(spec, dtype)
        self.lines: list[str] = []
        self.depth = 0

    def __call__(self, *lines: str) -> None:
        """Write lines at the present depth."""
        self.lines += ["    " * self.depth + line for line in lines]

    def write(self, name: str) -> str:
        """The function's text."""
        inputs, outputs = range(len(self.spec.inputs)), range(len(self.spec.outputs))
        tensors = [*(f"x{n}" for n in inputs), "weights"]
        strides = [f"s{n}" for n in inputs]
        if name == "forward":
            tensors += [f"out{n}" for n in outputs]
        else:
            more = range(self.spec.passes if name == "backward_and_add" else 0)
            tensors += [*(f"grad{n}" for n in outputs), *(f"more{n}" for n in more), *(f"dx{n}" for n in inputs)]
            strides += [*(f"t{n}" for n in outputs), *(f"u{n}" for n in more)]
        arguments = ", ".join([*tensors, "rows", *strides])
        self(
            "@triton.jit",
            f"def mlp_{name}({arguments}, BE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):",
        )
        self.depth = 1
        self(
            "dtype = weights.dtype.element_ty",
            "e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)",
            "row = (e < rows)[:, None]",
            "ck = tl.arange(0, BK)",
            "cn = tl.arange(0, BN)",
        )
        hidden = self._hidden(keep=name != "forward")
        if name == "forward":
            self._product(0 if not self.spec.hidden else self.spec.layers - 1, False, "x", "s", hidden, "out")
        else:
            self._backward(len(more))
        return "\n".join(self.lines)

    def _pieces(self, layer: int) -> list[int]:
        """Of a hidden layer."""
        return list(range(-(-self.spec.hidden[layer] // self.piece)))

    def _hidden(self, *, keep: bool) -> list[str]:
        """All hidden layers, ``z0_0``, ...; gives the names of the last one's pieces after the nonlinearity."""
        names: list[str] = []
        for n in range(len(self.spec.hidden)):
            matrix = self.matrices[n, False]
            self._sums(matrix, [f"z{n}_{m}" for m in self._pieces(n)], "x", "s", names)
            names = [f"a{n}_{m}" for m in self._pieces(n)]
            if keep and n == len(self.spec.hidden) - 1:  # whose value a derivative has no use for
                return []
            for m, name in enumerate(names):
                self._apply(VALUE, f"z{n}_{m}", name)
                self._split(matrix=self.matrices[n + 1, False], name=name)
        return names

    def _backward(self, more: int) -> None:
        names: list[str] = []
        for n in reversed(range(len(self.spec.hidden))):
            matrix = self.matrices[n + 1, True]
            sums = [f"d{n}_{m}" for m in self._pieces(n)]
            self._sums(matrix, sums, "grad", "t", names)
            for m, name in enumerate(sums):
                self._apply(SLOPE, f"z{n}_{m}", "slope")
                self(f"{name} = {name} * slope")
                self._split(matrix=self.matrices[n, True], name=name)
            names = sums
        self._product(0, True, "grad", "t", names, "dx", more)

    # Products

    def _sums(self, matrix: Matrix, sums: Sequence[str], memory: str, stride: str, names: Sequence[str]) -> None:
        """All pieces of a product with a matrix: of pieces in registers; where there are none, of tensors in memory.

        Args:
            matrix: of the layer.
            sums: names of the product's pieces.
            memory: the tensors' common name.
            stride: that of their strides.
            names: of the pieces in registers.
        """
        self(*(f"{one} = tl.zeros((BE, BN), dtype)" for one in sums))
        if names:
            for m, one in enumerate(sums):
                for k, name in enumerate(names):
                    self._add(matrix, one, name, f"{m * self.piece}", f"{k * self.piece}", "cn")
            return
        for _ in self._read(matrix, memory, stride):
            for m, one in enumerate(sums):
                self._add(matrix, one, "v", f"{m * self.piece}", "column + k", "ck")

    def _product(
        self, layer: int, transposed: bool, memory: str, stride: str, names: Sequence[str], result: str, more: int = 0
    ) -> None:
        """A product whose pieces are stored one after the other, the first ``more`` tensors with another one added."""
        matrix = self.matrices[layer, transposed]
        for number, width in enumerate(matrix.outer):
            self(f"for n in range(0, {width}, BN):")
            self.depth += 1
            self("y = tl.zeros((BE, BN), dtype)")
            row = f"{matrix.row(number)} + n"
            for k, name in enumerate(names):
                self._add(matrix, "y", name, row, f"{k * self.piece}", "cn")
            if not names:
                for _ in self._read(matrix, memory, stride):
                    self._add(matrix, "y", "v", row, "column + k", "ck")
            mask = _mask("n", "cn", width, self.piece)
            if number < more:
                self(
                    f"m_at = more{number} + (e * u{number})[:, None] + (n + cn)[None, :]",
                    f"y = y + tl.load(m_at, mask={mask}, other=0.0)",
                )
            self(
                f"y_at = {result}{number} + (e * {width})[:, None] + (n + cn)[None, :]",
                f"tl.store(y_at, y, mask={mask})",
            )
            self.depth -= 1

    def _read(self, matrix: Matrix, memory: str, stride: str) -> Iterator[None]:
        """What is written at each turn is within a loop over the pieces ``v`` of a tensor."""
        for part, width in enumerate(matrix.inner):
            self(
                f"v_at = {memory}{part} + (e * {stride}{part})[:, None] + ck[None, :]",
                f"column = {matrix.column(part)}",
                f"for k in range(0, {width}, BK):",
            )
            self.depth += 1
            self(f"v = tl.load(v_at + k, mask={_mask('k', 'ck', width, INNER)}, other=0.0)")
            self._split(matrix, "v")
            yield
            self.depth -= 1

    def _split(self, matrix: Matrix, name: str) -> None:
        """The rounded number and the rest, where the product with the matrix is of such."""
        if matrix.split:
            self(f"{name}h = rounded({name})", f"{name}l = rounded({name} - {name}h)")

    def _add(self, matrix: Matrix, total: str, name: str, row: str, column: str, inner: str) -> None:
        """Add the product of a piece with a piece of a matrix."""
        # A name for each shape: within a loop a name keeps the shape that it has before.
        w = f"w_{inner}"
        rows, columns = f"({row} + cn)[None, :] * {matrix.columns}", f"({column} + {inner})[:, None]"
        self(f"{w}_at = weights + {matrix.start} + {rows} + {columns}", f"{w} = tl.load({w}_at)")
        if not matrix.split:
            double = ", out_dtype=tl.float64" if self.dtype == torch.float64 else ""
            self(f'{total} = tl.dot({name}, {w}, {total}, input_precision="ieee"{double})')
            return
        tf32 = 'input_precision="tf32"'
        self(
            f"{w}l = tl.load({w}_at + {matrix.size})",
            f"p = tl.dot({name}l, {w}, {tf32})",
            f"p = tl.dot({name}h, {w}l, p, {tf32})",
            f"p = tl.dot({name}h, {w}, p, {tf32})",
            f"{total} = {total} + p",
        )

    def _apply(self, table: dict[str, list[str]], z: str, name: str) -> None:
        self(*(line.format(z=z) for line in table[self.spec.nonlinearity]), f"{name} = a")


def _mask(start: str, columns: str, width: int, piece: int) -> str:
    """Of a tile whose columns are a piece of a width."""
    return "row" if width % piece == 0 else f"row & ({start} + {columns} < {width})[None, :]"


def by_matrix(spec: ScalarMLPSpec, dtype: torch.dtype) -> str:
    """The function that sums products of a single layer's inputs and gradients over rows, [parts, inputs, outputs].

    A program has a part of the rows, and of one input and one gradient a piece each, as its number says.
    """
    inputs, outputs = range(len(spec.inputs)), range(len(spec.outputs))
    arguments = [*(f"x{n}" for n in inputs), *(f"grad{n}" for n in outputs), "sums", "rows"]
    arguments += [*(f"s{n}" for n in inputs), *(f"t{n}" for n in outputs)]
    split = dtype == torch.float32
    lines = [
        "@triton.jit",
        f"def mlp_by_matrix({', '.join(arguments)}, BE: tl.constexpr, T: tl.constexpr, PARTS: tl.constexpr):",
        "    dtype = sums.dtype.element_ty",
        "    part = tl.program_id(0)",
        "    tile = tl.program_id(1)",
        "    each = tl.cdiv(tl.cdiv(rows, PARTS), BE) * BE",
        "    first = part * each",
        "    stop = tl.minimum(first + each, rows)",
        "    c = tl.arange(0, T)",
    ]
    for number, (i, k, j, n) in enumerate(tiles(spec)):
        row, column = sum(spec.inputs[:i]) + k, sum(spec.outputs[:j]) + n
        inside = f"({k} + c < {spec.inputs[i]})[:, None]", f"({n} + c < {spec.outputs[j]})[None, :]"
        lines += [
            f"    if tile == {number}:",
            "        total = tl.zeros((T, T), dtype)",
            "        for start in range(first, stop, BE):",
            "            e = (start + tl.arange(0, BE)).to(tl.int64)",
            "            here = e < stop",
            f"            x = tl.load(x{i} + (e * s{i})[None, :] + ({k} + c)[:, None], "
            f"mask=here[None, :] & {inside[0]}, other=0.0)",
            f"            g = tl.load(grad{j} + (e * t{j})[:, None] + ({n} + c)[None, :], "
            f"mask=here[:, None] & {inside[1]}, other=0.0)",
        ]
        if split:
            tf32 = 'input_precision="tf32"'
            lines += [
                "            xh = rounded(x)",
                "            gh = rounded(g)",
                f"            p = tl.dot(rounded(x - xh), gh, {tf32})",
                f"            p = tl.dot(xh, rounded(g - gh), p, {tf32})",
                f"            p = tl.dot(xh, gh, p, {tf32})",
                "            total = total + p",
            ]
        else:
            lines += ['            total = tl.dot(x, g, total, input_precision="ieee", out_dtype=tl.float64)']
        fan_in, fan_out = sum(spec.inputs), sum(spec.outputs)
        lines += [
            f"        at = part.to(tl.int64) * {fan_in * fan_out}",
            f"        to = sums + at + (({row} + c) * {fan_out})[:, None] + ({column} + c)[None, :]",
            f"        tl.store(to, total, mask={inside[0]} & {inside[1]})",
        ]
    return "\n".join(lines)


def tiles(spec: ScalarMLPSpec) -> list[tuple[int, int, int, int]]:
    """Of a layer's matrix: input and its first column, output and its first column."""
    return [
        (i, k, j, n)
        for i, width in enumerate(spec.inputs)
        for k in range(0, width, UNIT)
        for j, height in enumerate(spec.outputs)
        for n in range(0, height, UNIT)
    ]


def pack(spec: ScalarMLPSpec, dtype: torch.dtype) -> str:
    """The function that packs weights, with their alphas; a program writes a tile of a tensor's part of a matrix."""
    lines = [
        "@triton.jit",
        f"def mlp_pack({', '.join(f'w{n}' for n in range(spec.layers))}, out, T: tl.constexpr):",
        "    i = tl.program_id(0)",
        "    c = tl.arange(0, T)",
    ]
    first = 0
    for matrix in matrices(spec, dtype).values():
        fan_out = spec.widths[matrix.layer + 1]
        for outer, height in enumerate(matrix.outer):
            for inner, width in enumerate(matrix.inner):
                across = filled(width) // TILE
                stop = first + across * filled(height) // TILE
                # The place of the part among the layer's weights.
                at = sum(matrix.outer[:outer]), sum(matrix.inner[:inner])
                strides = (fan_out, 1) if matrix.transposed else (1, fan_out)
                lines += [
                    f"    if (i >= {first}) & (i < {stop}):",
                    f"        r = ((i - {first}) // {across}) * T + c[:, None]",
                    f"        k = ((i - {first}) % {across}) * T + c[None, :]",
                    f"        w_at = w{matrix.layer} + (r + {at[0]}) * {strides[0]} + (k + {at[1]}) * {strides[1]}",
                    f"        w = tl.load(w_at, mask=(r < {height}) & (k < {width}), other=0.0)",
                    f"        w = w * {spec.alphas[matrix.layer]!r}",
                    f"        w_to = out + {matrix.start} + (r + {matrix.row(outer)}) * {matrix.columns}"
                    f" + k + {matrix.column(inner)}",
                ]
                if matrix.split:
                    lines += [
                        "        h = rounded(w)",
                        "        tl.store(w_to, h)",
                        f"        tl.store(w_to + {matrix.size}, rounded(w - h))",
                    ]
                else:
                    lines += ["        tl.store(w_to, w)"]
                first = stop
    return "\n".join(lines)


def pack_programs(spec: ScalarMLPSpec, dtype: torch.dtype) -> int:
    """How many tiles there are to pack."""
    return sum(matrix.size for matrix in matrices(spec, dtype).values()) // TILE**2
