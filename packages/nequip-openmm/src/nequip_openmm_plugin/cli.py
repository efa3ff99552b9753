"""``nequip openmm ACTION ...``: a file for TorchForce, dynamics, and whether OpenMM can run here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nequip_core.cli.imports import imports
from nequip_core.cli.options import add_device, add_json, assignments, command_parser
from nequip_core.errors import CheckError, InputError

SCHEMA = 1
"""Of the JSON that ``check`` prints."""

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The options of all actions."""
    result = command_parser("openmm", "Models in OpenMM.")
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

    one = add("export", "A file for TorchForce of OpenMM's plugin openmm-torch; prints the lines that load it.", export)
    add_model_and_system(one)
    one.add_argument("out", metavar="OUT.pt", type=Path, help="the file to write")
    one.add_argument("--no-embed", action="store_true", help="only name the model's file, instead of holding it")
    one.add_argument(
        "--atoms", metavar="ATOMS", type=numbers, help="particles that the model sees, from 0: 0-21,40; default: all"
    )
    one.add_argument("--lambda", metavar="NAME", dest="lambda_name", help="a global parameter that scales the energy")
    one.add_argument("--energy-only", action="store_true", help="for a TorchForce without setOutputsForces")

    one = add("run", "Molecular dynamics of a system, all of it by the model; prints ns/day.", run_dynamics)
    add_model_and_system(one)
    one.add_argument("--backend", choices=["auto", "python", "torchforce"], default="auto", help="how OpenMM is told")
    one.add_argument("--platform", metavar="NAME", default="auto", help="of OpenMM: auto, CUDA, OpenCL, CPU, Reference")
    one.add_argument(
        "--ensemble", choices=["nve", "nvt", "npt"], default="nvt", help="nvt, npt: Langevin; npt: barostat"
    )
    one.add_argument("--temperature", metavar="K", type=float, default=300.0, help="of velocities and thermostat")
    one.add_argument("--friction", metavar="1/PS", type=float, default=1.0, help="of Langevin dynamics")
    one.add_argument("--pressure", metavar="BAR", type=float, default=1.0, help="of npt")
    one.add_argument(
        "--timestep", metavar="FS", type=float, default=0.5, help="fs; bonds to hydrogen are not constrained"
    )
    one.add_argument("--steps", metavar="N", type=int, default=1000, help="number of steps")
    one.add_argument(
        "--minimize", metavar="N", type=int, default=0, help="first relax, with at most so many iterations"
    )
    one.add_argument("--seed", type=int, default=0, help="of velocities, random forces and barostat")
    one.add_argument("--interval", metavar="N", type=int, default=100, help="steps between rows and frames")
    one.add_argument("--trajectory", metavar="OUT.dcd", type=Path, help="write frames")
    one.add_argument("--log", metavar="LOG.csv", type=Path, help="write energies, temperature, volume")

    one = add(
        "check",
        "Platforms, and a force on two atoms with each backend. Exit code 3: OpenMM can not run.",
        check,
    )
    one.add_argument("file", metavar="FILE.pt", nargs="?", type=Path, help="a file of `export`: also print what it is")
    add_json(one)
    return result


def add_model_and_system(one: argparse.ArgumentParser) -> None:
    """MODEL, SYSTEM and how the model sees it."""
    one.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="compiled (.nequip.pt2); a package, checkpoint or run is compiled",
    )
    one.add_argument("system", metavar="SYSTEM.pdb", type=Path, help="atoms, bonds and box (.pdb, .cif)")
    one.add_argument(
        "--types", metavar="ELEMENT=TYPE,...", type=assignments, default={}, help="where an element has several types"
    )
    one.add_argument("--no-periodic", action="store_true", help="no periodic images, though SYSTEM has a box")
    one.add_argument("--skin", metavar="A", type=float, default=1.0, help="Å of the neighbour list beyond the cut-off")
    add_device(one)


def numbers(text: str) -> list[int]:
    """``0-21,40`` as a list of numbers, in that order."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; expected for example 0-21,40")
        found += range(int(first), int(last or first) + 1)
    return found


def run(argv: list[str]) -> int:
    """Do what the action says."""
    options = parser().parse_args(argv)
    code: int = options.act(options)
    return code


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments that the Python functions share."""
    return {
        "types": options.types or None,
        "periodic": False if options.no_periodic else None,
        "skin": options.skin,
        "device": options.device,
    }


def export(options: argparse.Namespace) -> int:
    """Write the file, print the lines."""
    with imports():
        from nequip_core.cli.loading import say
        from nequip_openmm.simulation import read_system
        from nequip_openmm.torchforce import export_torchforce, read_spec, usage

    if options.out.suffix != ".pt":
        raise InputError(f"{options.out} is to be a file for TorchForce. Expected a name that ends in .pt.")
    path = export_torchforce(
        options.model,
        read_system(options.system).topology,
        options.out,
        embed=not options.no_embed,
        atoms=options.atoms,
        lambda_name=options.lambda_name,
        energy_only=options.energy_only,
        **common(options),
    )
    say(f"wrote {path}")
    print(usage(read_spec(path), path))
    return 0


def run_dynamics(options: argparse.Namespace) -> int:
    """Integrate, print a line per interval, end with the speed."""
    with imports():
        from nequip_core.cli.loading import say, stop_on_interrupt
        from nequip_openmm.simulation import Settings, prepare_simulation, read_system, run_simulation

    settings = Settings(
        ensemble=options.ensemble,
        temperature=options.temperature,
        friction=options.friction,
        pressure=options.pressure,
        timestep=options.timestep,
        steps=options.steps,
        minimize=options.minimize,
        seed=options.seed,
        interval=options.interval,
    )
    start = read_system(options.system)
    simulation = prepare_simulation(
        start, options.model, settings, backend=options.backend, platform=options.platform, **common(options)
    )
    say(
        f"system: {options.system}, {start.topology.getNumAtoms()} atoms, on OpenMM's platform "
        f"{simulation.context.getPlatform().getName()}"
    )
    with stop_on_interrupt() as stop:
        result = run_simulation(simulation, settings, log=options.log, trajectory=options.trajectory, stop=stop)
    if result.steps:
        print(f"{result.steps} steps in {result.seconds:.1f} s: {result.ns_per_day:.3g} ns/day")
    for path in filter(None, (options.log, options.trajectory)):
        say(f"wrote {path}")
    if result.steps < settings.steps:
        say(f"interrupted after step {result.steps} of {settings.steps}")
        return INTERRUPTED
    return 0


def check(options: argparse.Namespace) -> int:
    """Print the verdicts."""
    with imports():
        from nequip_openmm.check import examine

    report = {"schema": SCHEMA, **examine()}
    if options.file is not None:
        from nequip_openmm.torchforce import read_spec, usage

        spec = read_spec(options.file)
        report["file"] = {"path": str(options.file), "model": spec.path, "particles": spec.particles}
        report["usage"] = usage(spec, options.file)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"OpenMM {report['openmm']}, torch {report['torch']}; platforms {', '.join(report['platforms'])}")
        for name, verdict in report["backends"].items():
            print(f"{'yes' if verdict['usable'] else 'no ':3s} {name}: {verdict['sentence']}")
        if options.file is not None:
            print(f"{options.file}: {report['file']['model']} for {report['file']['particles']} particles\n")
            print(report["usage"])
    if not report["backends"]["python"]["usable"]:
        raise CheckError(report["backends"]["python"]["sentence"])
    return 0
