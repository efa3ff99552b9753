"""``python -m nequip_lammps core FOLDER``: the shim has its core compiled; ``bundle FOLDER``: both parts, for a wheel.

A failure is one line.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nequip_lammps.build import BuildError, add_core, build_plugin, wheel


def main(argv: list[str]) -> int:
    """Compile into a folder."""
    if len(argv) != 2 or argv[0] not in ("core", "bundle"):
        print("expected: python -m nequip_lammps core FOLDER; other acts are under nequip lammps")
        return 2
    try:
        if argv[0] == "core":
            add_core(Path(argv[1]))
        else:
            build_plugin(wheel(), Path(argv[1]))
    except BuildError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
