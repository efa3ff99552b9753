"""``nequip compile MODEL OUT.nequip.pt2``: machine code of a model, which engines load without Python."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from nequip_core.cli.imports import imports
from nequip_core.cli.options import add_kernels, add_model, command_parser, device
from nequip_core.errors import InputError
from nequip_core.plugins.manager import Registry, find, load_registry

SUFFIX = ".nequip.pt2"


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser(
        "compile",
        "A model as machine code for one engine, one device and this version of torch, compared with the eager model.",
    )
    add_model(result)
    result.add_argument("out", metavar="OUT", type=Path, help=f"OUT{SUFFIX}")
    result.add_argument(
        "--target", default="ase", help="the engine: a name of `nequip plugins`, ase or batch of core's"
    )
    result.add_argument("--device", type=device, default="cpu", help="auto | cpu | cuda: what the file is for")
    result.add_argument("--dtype", choices=["float32", "float64"], help="of the weights; default: the model's own")
    add_kernels(result)
    result.add_argument("--native", action="store_true", help="for CPUs like this one, with all their instructions")
    result.add_argument("--json", action="store_true", help="print JSON")
    return result


def run(argv: list[str]) -> int:
    """Compile, compare, write, and print the lines that the engine takes."""
    options = parser().parse_args(argv)
    registry = load_registry()
    target = find(registry.targets, options.target, "target")
    if not options.out.name.endswith(SUFFIX):
        raise InputError(f"{options.out} can not be written: the names of compiled models end in {SUFFIX}.")
    if not options.out.parent.is_dir():
        raise InputError(f"{options.out} can not be written: there is no folder {options.out.parent}.")

    with imports():
        from nequip_core.cli.loading import load, say
        from nequip_core.export.aoti import compile_model

    loaded = load(options, device=options.device, kernels=options.kernels, dtype=options.dtype, derivatives=1)
    for op, about in loaded.kernels.items():
        say(f"kernel of {op}: {about['chosen']}" + "".join(f"; {n} can not: {r}" for n, r in about["refused"].items()))
    report = compile_model(loaded, target, options.out, registry, native=options.native, say=say)
    if options.json:
        about = {"schema": 1, "path": str(options.out), **asdict(report)}
        print(json.dumps(about, indent=2))
    else:
        size = options.out.stat().st_size / 1e6
        print(f"{options.out} ({size:.1f} MB; traced in {report.trace_s:.0f} s, compiled in {report.inductor_s:.0f} s)")
        print(_lines(registry, target.name, options.out, report.metadata.types))
    return 0


def _lines(registry: Registry, target: str, out: Path, types: list[str]) -> str:
    """What a user of each engine of the target types."""
    engines = [engine for engine in registry.engines.values() if engine.target == target]
    examples = [engine.example.replace("MODEL", str(out)).replace("TYPES", " ".join(types)) for engine in engines]
    return "\n".join(f"\n{engine.name}:\n{example}" for engine, example in zip(engines, examples, strict=True))
