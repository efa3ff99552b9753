"""The text of Triton functions whose programs sweep the edges of one atom.

A program has one atom and a block of channels. It takes the atom's edges in tiles of [BE edges, BU channels]; what
belongs to the atom alone is [1, BU], what belongs to an edge alone [BE, 1]. Components are names with a number (``T0``,
``T1``, ...), so everything stays in registers, and the couplings are written out as sums of products.

A program waits for what it has asked memory for, and then computes; so it asks for the next tiles before, as many as
STAGES says, which wait in shared memory.

The grid has one program more than there are atoms, since a grid may not be empty: the program before the first atom
finds no edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from nequip_kernels.blocks import next_power_of_two

HEAD = '''\
"""Written by nequip-kernels. {about}"""

import triton
import triton.language as tl
'''


def module(about: str, kernels: Iterable[Kernel]) -> str:
    """A file of kernels, which imports nothing but triton."""
    return HEAD.format(about=about) + "".join(f"\n\n{kernel.text}\n" for kernel in kernels)


class Kernel:
    """One function that is being written.

    Args:
        name: of the function.
        tensors: its arguments, pointers all of them; ``row_ptr`` is added.
        dtype_of: the argument whose type is that of all sums.
        sizes: further arguments, whole numbers.
        constants: besides those of `nequip_kernels.blocks.Block.constants`.
    """

    def __init__(
        self,
        name: str,
        tensors: Sequence[str],
        dtype_of: str,
        *,
        sizes: Sequence[str] = (),
        constants: Sequence[str] = (),
    ) -> None:
        self.lines: list[str] = []
        self.depth = 0
        constant = ", ".join(f"{one}: tl.constexpr" for one in ("U", "BU", "BE", "STAGES", *constants))
        self("@triton.jit", f"def {name}({', '.join([*tensors, 'row_ptr', *sizes])}, {constant}):")
        self.depth = 1
        self(
            f"dtype = {dtype_of}.dtype.element_ty",
            "u = tl.program_id(1) * BU + tl.arange(0, BU)",
            "channel = u < U",
            "if U % BU == 0:",
            "    channel = tl.full([BU], 1, tl.int1)",
        )

    @property
    def text(self) -> str:
        """What was written."""
        return "\n".join(self.lines)

    def __call__(self, *lines: str) -> None:
        """Write lines at the present depth."""
        self.lines += ["    " * self.depth + line for line in lines]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """What is written in here is indented under ``head``."""
        self(head)
        self.depth += 1
        yield
        self.depth -= 1

    def this_atom(self) -> None:
        """One atom for each program: its number and where its edges start and stop."""
        self(
            "i = tl.program_id(0).to(tl.int64) - 1",
            "start = tl.load(row_ptr + i, mask=i >= 0, other=0)",
            "stop = tl.load(row_ptr + i + 1)",
            "on_atom = (channel & (i >= 0))[None, :]",
        )

    @contextmanager
    def edges(self) -> Iterator[None]:
        """A sweep over the atom's edges."""
        with self.block("for first in tl.range(start, stop, BE, num_stages=STAGES):"):
            self(
                "e = (first + tl.arange(0, BE)).to(tl.int64)", "edge = e < stop", "m = edge[:, None] & channel[None, :]"
            )
            yield

    # Rows of memory: [edges, width, U], [atoms, width, U], [edges, width]

    def edge_rows(self, tensor: str, width: int) -> None:
        """Where the tile's rows of a tensor [edges, width, U] are."""
        self(f"{tensor}_at = {tensor} + (e * ({width} * U))[:, None] + u[None, :]")

    def load_edge(self, name: str, tensor: str, component: int) -> None:
        """A component of the tile's rows."""
        self(f"{name} = tl.load({tensor}_at + {component} * U, mask=m, other=0.0)")

    def store_edge(self, tensor: str, component: int, value: str) -> None:
        """Likewise."""
        self(f"tl.store({tensor}_at + {component} * U, {value}, mask=m)")

    def load_edges(self, name: str, tensor: str, width: int) -> None:
        """All components of a tensor [edges, width, U], as ``name0``, ``name1``, ..."""
        self.edge_rows(tensor, width)
        for component in range(width):
            self.load_edge(f"{name}{component}", tensor, component)

    def load_numbers(self, name: str, tensor: str, width: int) -> None:
        """All components of a tensor [edges, width]."""
        self(f"{tensor}_at = {tensor} + e * {width}")
        for component in range(width):
            self(f"{name}{component} = tl.load({tensor}_at + {component}, mask=edge, other=0.0)[:, None]")

    def channel_sums(self, tensor: str, width: int, values: Iterable[tuple[int, str]]) -> None:
        """Sums over the block's channels of [edges, channels] values, to numbers of rows that ``tensor_at`` points at.

        They are stored as one tile: a store for each would pass through shared memory each time.
        """
        self(f"J: tl.constexpr = {next_power_of_two(width)}", "j = tl.arange(0, J)[None, :]")
        self("sums = tl.zeros((BE, J), dtype)")
        for component, value in values:
            self(f"sums = tl.where(j == {component}, tl.sum({value}, 1)[:, None], sums)")
        self(f"tl.store({tensor}_at[:, None] + j, sums, mask=edge[:, None] & (j < {width}))")

    def load_atom(self, name: str, tensor: str, width: int) -> None:
        """All components of a tensor [atoms, width, U]."""
        self(f"{tensor}_at = {tensor} + i * ({width} * U) + u[None, :]")
        for component in range(width):
            self(f"{name}{component} = tl.load({tensor}_at + {component} * U, mask=on_atom, other=0.0)")

    def zeros(self, name: str, width: int) -> None:
        """Sums over the edges, to begin with."""
        for component in range(width):
            self(f"{name}{component} = tl.zeros((BE, BU), dtype)")

    def sum_edges(self, name: str, of: str, width: int, store: str | None = None) -> None:
        """The sums over the tile's edges of ``of0``, ...; stored to [atoms, width, U] if asked."""
        for component in range(width):
            self(f"{name}{component} = tl.sum({of}{component}, 0)[None, :]")
        if store is not None:
            self(f"{store}_at = {store} + i * ({width} * U) + u[None, :]")
            for component in range(width):
                self(f"tl.store({store}_at + {component} * U, {name}{component}, mask=on_atom)")


def plus(terms: Iterable[str]) -> str:
    """Their sum."""
    return " + ".join(terms)
