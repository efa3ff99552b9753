"""``nequip benchmark WHAT``: speed of parts of this installation on this machine.

What there is to measure belongs to the package that offers it, and is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from nequip_core.cli.options import command_parser
from nequip_core.errors import PluginError
from nequip_core.plugins.records import Ref


class Part(NamedTuple):
    """Something that can be measured.

    Attributes:
        summary: of what.
        distribution: that offers it.
        run: a function ``run(argv) -> exit code`` of it.
    """

    summary: str
    distribution: str
    run: Ref


PARTS = {
    "inference": Part(
        "energies and forces of a model, by size", "nequip-core", Ref("nequip_core.cli.benchmark_model:inference")
    ),
    "training": Part(
        "training steps of a model, by size", "nequip-core", Ref("nequip_core.cli.benchmark_model:training")
    ),
    "kernels": Part("each GPU kernel against its floor; --tune", "nequip-kernels", Ref("nequip_kernels.benchmark:run")),
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("benchmark", "Speed of parts of this installation, on this machine.")
    listed = "; ".join(f"{name}: {part.summary}" for name, part in PARTS.items())
    result.add_argument("what", choices=list(PARTS), help=f"what to measure. {listed}")
    result.add_argument("options", nargs=argparse.REMAINDER, help="of the part; `nequip benchmark WHAT --help`")
    return result


def run(argv: Sequence[str]) -> int:
    """Measure. The exit code is the part's.

    Raises:
        PluginError: the package that offers the part is not installed.
    """
    given = parser().parse_args(argv)
    part = PARTS[given.what]
    if importlib.util.find_spec(part.run.path.partition(".")[0]) is None:
        raise PluginError(
            f"nequip benchmark {given.what} is part of {part.distribution}, which is not installed: "
            f"pip install {part.distribution}."
        )
    code: int = part.run.load()(given.options)
    return code
