"""Sizes of blocks for each kernel: a table by architecture in the package, and one beside the caches that tuning adds.

A size is looked up when a kernel is made, so neither a second start nor an export measures anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from nequip_kernels import sources

PACKAGED = Path(__file__).with_name("blocks.json")


class Block(NamedTuple):
    """How a program is cut.

    Attributes:
        channels: of a program, a power of two.
        edges: of a tile, a power of two.
        warps: threads of a program / 32.
        stages: tiles that a loop has in flight.
    """

    channels: int
    edges: int
    warps: int
    stages: int = 1

    def constants(self, channels: int) -> dict[str, int]:
        """Of a function of `nequip_kernels.emit`, for features of so many channels."""
        return {"U": channels, "BU": self.channels, "BE": self.edges, "STAGES": self.stages}


class Row(NamedTuple):
    """One line of the table: the block of one kernel for couplings of up to so many terms.

    Attributes:
        architecture: sm_90, ...; any: all that are not listed.
        op: contract of the operator.
        kernel: forward, ...
        dtype: float32 or float64.
        terms: largest number of terms that it is for.
        block: what was best.
    """

    architecture: str
    op: str
    kernel: str
    dtype: str
    terms: int
    block: Block


def architecture_of(device: torch.device) -> str:
    """sm_90 and so on; "any" where there is no such device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "any"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def tuned_file() -> Path:
    """Where ``nequip benchmark kernels --tune`` writes."""
    return sources.folder() / "blocks.json"


@cache
def rows() -> tuple[Row, ...]:
    """All lines; tuned ones first."""
    files = [tuned_file(), PACKAGED]
    return tuple(row for path in files if path.is_file() for row in read(path))


def read(path: Path) -> list[Row]:
    """The lines of a file."""
    return [
        Row(**{**row, "block": Block(*row["block"])}) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
    ]


def as_text(rows: Iterable[Row]) -> str:
    """A file of lines, one for each."""
    lines = ",\n".join("    " + json.dumps({**row._asdict(), "block": list(row.block)}) for row in rows)
    return f'{{\n  "schema": 1,\n  "rows": [\n{lines}\n  ]\n}}\n'


def choose(architecture: str, op: str, kernel: str, dtype: torch.dtype, terms: int, channels: int) -> Block:
    """The block of the first line that fits; where there are fewer channels than it has, more edges take their place.

    Args:
        architecture: see `architecture_of`.
        op: contract of the operator.
        kernel: its name.
        dtype: of the sums.
        terms: of the couplings.
        channels: of the features.
    """
    name = str(dtype).removeprefix("torch.")
    for known in (architecture, "any"):
        fitting = [
            row
            for row in rows()
            if (row.architecture, row.op, row.kernel, row.dtype) == (known, op, kernel, name) and terms <= row.terms
        ]
        if fitting:
            best = min(fitting, key=lambda row: row.terms).block
            used = min(best.channels, next_power_of_two(channels))
            return best._replace(channels=used, edges=best.edges * (best.channels // used))
    raise ValueError(f"There is no size of blocks for {op}, {kernel}, {name}, {terms} terms in {PACKAGED}.")


def next_power_of_two(number: int) -> int:
    """The smallest power of two of at least ``number``."""
    return 1 << (number - 1).bit_length()
