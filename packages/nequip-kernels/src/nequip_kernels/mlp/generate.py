"""The text of the Triton functions of one network of scalars: value, and derivative by inputs.

A program has a tile of BE rows. Widths are cut into pieces of BK: a hidden layer is one [BE, BK] tensor in registers
for each piece (``z0_0``, ``z0_1``, ...: layer, piece), so no hidden layer is ever stored. Inputs are read in pieces,
one after the other and tensor after tensor: the first layer's product is the sum over them. Weights come from the
cache.

The grid has one program more than there are whole tiles, since a grid may not be empty.
"""

from __future__ import annotations

import torch

from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_kernels.emit import HEAD

FEW = 8
"""Sums of so few products are rounded so little in float32 that three products of tensor cores are not as good."""


def precision(dtype: torch.dtype, terms: int) -> str:
    """Of sums of so many products: three of tensor cores for one of float32 numbers.

    Triton adds the product of each piece to the sum itself, rounded to nearest; tensor cores would truncate the sum.
    """
    if dtype == torch.float64:
        return 'input_precision="ieee", out_dtype=tl.float64'
    return 'input_precision="ieee"' if terms < FEW else 'input_precision="tf32x3"'


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


def source(spec: ScalarMLPSpec, dtype: torch.dtype, piece: int) -> str:
    """A file with the functions ``mlp_forward`` and ``mlp_backward``.

    Args:
        spec: of the network.
        dtype: of all numbers.
        piece: BK, which decides how many tensors a hidden layer is.
    """
    about = f"A network of the widths {list(spec.inputs)}, {list(spec.hidden)}, {spec.out} in pieces of {piece}."
    return HEAD.format(about=about) + "".join(
        f"\n\n{Writer(spec, dtype, piece).write(name)}\n" for name in ("forward", "backward")
    )


class Writer:
    """One function that is being written."""

    def __init__(self, spec: ScalarMLPSpec, dtype: torch.dtype, piece: int) -> None:
        self.spec, self.dtype, self.piece = spec, dtype, piece
        self.lines: list[str] = []
        self.parts = range(len(spec.inputs))
        self.first_rows = [sum(spec.inputs[:n]) for n in self.parts]

    def __call__(self, *lines: str) -> None:
        """Write lines."""
        self.lines += lines

    def write(self, name: str) -> str:
        """The function's text."""
        tensors = [f"x{n}" for n in self.parts] + [f"w{n}" for n in range(self.spec.layers)]
        tensors += ["out"] if name == "forward" else ["grad", *(f"dx{n}" for n in self.parts)]
        strides = [f"s{n}" for n in self.parts] + ([] if name == "forward" else ["sg"])
        arguments = ", ".join([*tensors, "rows", *strides])
        self(
            "@triton.jit",
            f"def mlp_{name}({arguments}, BE: tl.constexpr, BK: tl.constexpr):",
            f"    dtype = {tensors[-1]}.dtype.element_ty",
            "    e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)",
            "    row = (e < rows)[:, None]",
            "    c = tl.arange(0, BK)",
        )
        if self.spec.hidden:
            self._hidden(keep=name == "backward")
        (self._forward if name == "forward" else self._backward)()
        return "\n".join(self.lines)

    def _pieces(self, layer: int) -> range:
        """Of a hidden layer."""
        return range(-(-self.spec.hidden[layer] // self.piece))

    # Layers

    def _hidden(self, *, keep: bool) -> None:
        """All hidden layers: ``z0_0``, ... before the nonlinearity, of all layers if asked; ``a0_0``, ... after it."""
        spec = self.spec
        for n in range(len(spec.hidden)):
            self(*(f"    z{n}_{m} = tl.zeros((BE, BK), dtype)" for m in self._pieces(n)))
            if n == 0:
                for part in self.parts:
                    self._rows_of(part)
                    with_weights = [
                        (f"z0_{m}", "x", self._weight(0, f"{self.first_rows[part]} + k", f"{m * self.piece}", part))
                        for m in self._pieces(0)
                    ]
                    self(f"    for k in range(0, {spec.inputs[part]}, BK):", self._load_input(part))
                    self(*(f"        {self._dot(spec.widths[0], *one)}" for one in with_weights))
            else:
                for m in self._pieces(n):
                    for k in self._pieces(n - 1):
                        weight = self._weight(n, f"{k * self.piece}", f"{m * self.piece}")
                        self(f"    {self._dot(spec.widths[n], f'z{n}_{m}', f'a{n - 1}_{k}', weight)}")
            for m in self._pieces(n):
                self(f"    z{n}_{m} = z{n}_{m} * {spec.alphas[n]!r}")
                if not (keep and n == len(spec.hidden) - 1):  # whose value a derivative has no use for
                    self._apply(VALUE, f"z{n}_{m}", f"a{n}_{m}")

    def _forward(self) -> None:
        spec, last = self.spec, self.spec.layers - 1
        self(f"    for n in range(0, {spec.out}, BK):", "        y = tl.zeros((BE, BK), dtype)")
        if spec.hidden:
            for m in self._pieces(last - 1):
                weight = self._weight(last, f"{m * self.piece}", "n")
                self(f"        {self._dot(spec.widths[last], 'y', f'a{last - 1}_{m}', weight)}")
        else:
            for part in self.parts:
                self._rows_of(part, depth=2)
                weight = self._weight(0, f"{self.first_rows[part]} + k", "n", part)
                self(f"        for k in range(0, {spec.inputs[part]}, BK):", self._load_input(part, depth=3))
                self(f"            {self._dot(spec.widths[0], 'y', 'x', weight)}")
        self(
            f"        out_at = out + (e * {spec.out})[:, None] + (n + c)[None, :]",
            f"        tl.store(out_at, y * {spec.alphas[last]!r}, mask={self._mask('row', 'n', spec.out)})",
        )

    def _backward(self) -> None:
        spec, last = self.spec, self.spec.layers - 1
        self("    grad_at = grad + (e * sg)[:, None] + c[None, :]")
        if not spec.hidden:
            self._to_inputs(["g"])
            return
        # By the last hidden layer: pieces of the gradient, one after the other.
        self(*(f"    d{last - 1}_{m} = tl.zeros((BE, BK), dtype)" for m in self._pieces(last - 1)))
        self(f"    for n in range(0, {spec.out}, BK):", f"        {self._load_grad()}")
        for m in self._pieces(last - 1):
            weight = self._transposed(last, f"{m * self.piece}", "n")
            self(f"        {self._dot(spec.out, f'd{last - 1}_{m}', 'g', weight)}")
        for n in reversed(range(last)):
            for m in self._pieces(n):
                if n < last - 1:
                    self(f"    d{n}_{m} = tl.zeros((BE, BK), dtype)")
                    for k in self._pieces(n + 1):
                        weight = self._transposed(n + 1, f"{m * self.piece}", f"{k * self.piece}")
                        self(f"    {self._dot(spec.widths[n + 2], f'd{n}_{m}', f'd{n + 1}_{k}', weight)}")
                self._apply(SLOPE, f"z{n}_{m}", "slope")
                self(f"    d{n}_{m} = d{n}_{m} * slope * {spec.alphas[n + 1]!r}")
        self._to_inputs([f"d0_{m}" for m in self._pieces(0)])

    def _to_inputs(self, pieces: list[str]) -> None:
        """Derivatives by the inputs of those by the first layer's result: ``g`` where there is no other."""
        spec = self.spec
        for part in self.parts:
            width = spec.inputs[part]
            self(f"    for k in range(0, {width}, BK):", "        y = tl.zeros((BE, BK), dtype)")
            if spec.hidden:
                for m, one in enumerate(pieces):
                    weight = self._transposed(0, f"{self.first_rows[part]} + k", f"{m * self.piece}", part)
                    self(f"        {self._dot(spec.widths[1], 'y', one, weight)}")
            else:
                weight = self._transposed(0, f"{self.first_rows[part]} + k", "n", part)
                self(f"        for n in range(0, {spec.out}, BK):", f"            {self._load_grad()}")
                self(f"            {self._dot(spec.out, 'y', 'g', weight)}")
            self(
                f"        dx_at = dx{part} + (e * {width})[:, None] + (k + c)[None, :]",
                f"        tl.store(dx_at, y * {spec.alphas[0]!r}, mask={self._mask('row', 'k', width)})",
            )

    # Lines

    def _dot(self, terms: int, total: str, one: str, other: str) -> str:
        """Add the product of two pieces to a sum of so many terms in all."""
        return f"{total} = tl.dot({one}, {other}, {total}, {precision(self.dtype, terms)})"

    def _apply(self, table: dict[str, list[str]], z: str, name: str) -> None:
        self(*("    " + line.format(z=z) for line in table[self.spec.nonlinearity]), f"    {name} = a")

    def _rows_of(self, part: int, depth: int = 1) -> None:
        self("    " * depth + f"x_at = x{part} + (e * s{part})[:, None] + c[None, :]")

    def _load_input(self, part: int, depth: int = 2) -> str:
        mask = self._mask("row", "k", self.spec.inputs[part])
        return "    " * depth + f"x = tl.load(x_at + k, mask={mask}, other=0.0)"

    def _load_grad(self) -> str:
        return f"g = tl.load(grad_at + n, mask={self._mask('row', 'n', self.spec.out)}, other=0.0)"

    def _mask(self, rows: str, start: str, width: int) -> str:
        """Of a tile whose columns are a piece of a width."""
        return rows if width % self.piece == 0 else f"{rows} & ({start} + c < {width})[None, :]"

    def _weight(self, layer: int, start: str, column: str, part: int | None = None) -> str:
        """A piece of a weight matrix, [BK inputs, BK outputs]."""
        return self._load_weight(layer, start, column, part, ("[:, None]", "[None, :]"))

    def _transposed(self, layer: int, start: str, column: str, part: int | None = None) -> str:
        """Likewise, [BK outputs, BK inputs]."""
        return self._load_weight(layer, start, column, part, ("[None, :]", "[:, None]"))

    def _load_weight(self, layer: int, start: str, column: str, part: int | None, axes: tuple[str, str]) -> str:
        fan_in, fan_out = self.spec.widths[layer : layer + 2]
        # The rows of one input tensor end where the next one's begin.
        stop, length = (
            (fan_in, fan_in)
            if part is None
            else (self.first_rows[part] + self.spec.inputs[part], self.spec.inputs[part])
        )
        masks = []
        if length % self.piece:
            masks.append(f"({start} + c < {stop}){axes[0]}")
        if fan_out % self.piece:
            masks.append(f"({column} + c < {fan_out}){axes[1]}")
        mask = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
        return f"tl.load(w{layer} + (({start} + c) * {fan_out}){axes[0]} + ({column} + c){axes[1]}{mask})"
