"""Energies and forces of water: our compiled files, with kernels and without, our eager calls, and the published
packages' eager calls and compiled files, in alternation.

python benchmarks/inference.py [--device cuda] [--out FILE.csv] [--theirs PYTHON] [--their-path FOLDER] [--tiny]
    [--large] [--sides ours,ours_eager,kernels,stored,theirs_eager,theirs,theirs_kernels] [--only WORD]
    [--files FOLDER]

`call_ms` is a call with the graph on the device; `step_ms` a step of ASE, with the neighbour list and the way to the
host and back. The first of --sides is compared with the others. All files are compiled first, at the same time; with
--files they stay, and those that are there are used.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from sides import EndedError, Program, Side, compare, hardware, start, write
from systems import compiled_file
from timing import SECONDS

CASES = (
    ("allegro_2", "water_81"),
    ("allegro_2", "water_192"),
    ("allegro_2", "water_1536"),
    ("allegro_2", "water_5184"),
    ("allegro_2", "water_20577"),
    ("allegro_3", "water_1536"),
    ("allegro_3", "water_5184"),
    ("nequip_md", "water_81"),
    ("nequip_md", "water_1536"),
    ("nequip_md", "water_12288"),
    ("nequip_large", "silicon_8000"),
)
ON_CPU = (("allegro_2", "water_192"), ("nequip_md", "water_192"))
LARGE = (("allegro_2", "water_20577"), ("allegro_2", "water_1029000"))
TINY = (("allegro_tiny", "water_81"), ("nequip_tiny", "water_81"))
FIGURES = ("call_ms", "step_ms", "us_per_atom", "call_mb")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--theirs", default="", help="interpreter with the published packages")
    parser.add_argument("--their-path", default="", help="folder of the published packages, if they are not installed")
    parser.add_argument("--sides", default="ours,ours_eager,theirs_eager,theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", default="4", help="of timing for each figure of a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose names hold one of these words (a,b)")
    parser.add_argument("--tiny", action="store_true", help="small models, to try this script")
    parser.add_argument("--large", action="store_true", help="a million atoms, which are divided into blocks")
    parser.add_argument("--files", type=Path, help="folder where compiled files stay")
    parser.add_argument("--compile-only", action="store_true", help="into --files; measure nothing")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ[SECONDS] = options.seconds
    them = options.theirs or sys.executable
    folder = tempfile.TemporaryDirectory() if options.files is None else None
    files = Path(folder.name) if folder else options.files
    files.mkdir(exist_ok=True)

    def side(python: str, script: str, mode: str, path: str = "") -> Program:
        return Program(python, script, mode, path, (str(files),))

    known = {
        "ours": side(sys.executable, "our_calls.py", "file"),
        "kernels": side(sys.executable, "our_calls.py", "kernels"),
        "stored": side(sys.executable, "our_calls.py", "stored"),
        "ours_eager": side(sys.executable, "our_calls.py", "eager"),
        "theirs": side(them, "their_calls.py", "file", options.their_path),
        "theirs_kernels": side(them, "their_calls.py", "kernels", options.their_path),
        "theirs_eager": side(them, "their_calls.py", "eager", options.their_path),
    }
    wanted = options.sides.split(",")
    if not (options.theirs or options.their_path or importlib.util.find_spec("nequip")):
        print("The published packages are not here: ours are compared with each other.", flush=True)
        wanted = [name for name in wanted if not name.startswith("theirs")]
    programs = {name: known[name] for name in wanted}
    usual = CASES if options.device == "cuda" else ON_CPU
    cases = [
        case
        for case in (TINY if options.tiny else LARGE if options.large else usual)
        if any(word in " ".join(case) for word in options.only.split(","))
    ]
    remarks = {"hardware": hardware(options.device, options.threads)}
    failed = compile_all(programs, cases, options)
    if options.compile_only:
        return bool(failed)
    rows = []

    def begin(case: tuple[str, str]) -> dict[str, Side]:
        able = {name: program for name, program in programs.items() if (name, case[0]) not in failed}
        return start(able, case, options.device, options.threads)

    ready = {case: begin(case) for case in cases} if options.device == "cuda" else {}  # which saves minutes
    for sides in ready.values():
        for one in sides.values():
            one.wait()
    for case in cases:
        rows += compare(ready.get(case) or begin(case), case, FIGURES, options.rounds, remarks)
        write(options.out, rows)
    return bool(failed)


def compile_all(
    programs: dict[str, Program], cases: Sequence[tuple[str, str]], options: argparse.Namespace
) -> set[tuple[str, str]]:
    """Write the files of all models, at the same time; the (side, model) that failed, which are then left out."""
    first = {model: (model, system) for model, system in reversed(cases)}
    sides = {}
    for model, case in first.items():
        wanted = {name: program for name, program in programs.items() if not file_of(program, case, options).exists()}
        sides[model] = start(wanted, case, options.device, options.threads)
    failed = set()
    for model, of_model in sides.items():
        for name, one in of_model.items():
            try:
                print(f"{model} {name} is compiled: {one.figures()}", flush=True)
                one.end()
            except EndedError as error:
                print(f"{model} without {name}: {error}", flush=True)
                failed.add((name, model))
    return failed


def file_of(program: Program, case: tuple[str, str], options: argparse.Namespace) -> Path:
    """What a side compiles; for an eager side this script, which is there."""
    if program.mode == "eager":
        return Path(__file__)
    side = "ours" if program.script.startswith("our") else "theirs"
    return compiled_file(program.words[0], side, *case, program.mode, options.device)


if __name__ == "__main__":
    sys.exit(main())
