"""``python -m nequip_lammps core FOLDER``: the shim has its core compiled; a failure is one line."""

from __future__ import annotations

import sys
from pathlib import Path

from nequip_lammps.build import BuildError, add_core


def main(argv: list[str]) -> int:
    """Compile the core into a plugin's folder."""
    if len(argv) != 2 or argv[0] != "core":
        print("expected: python -m nequip_lammps core FOLDER; other acts are under nequip lammps")
        return 2
    try:
        add_core(Path(argv[1]))
    except BuildError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
