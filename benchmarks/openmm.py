"""Molecular dynamics of water in OpenMM: our backends, and openmm-ml's `nequip` potential with the published package.

python benchmarks/openmm.py [--device cuda] [--theirs PYTHON] [--their-path FOLDER] [--out FILE.csv] [--tiny]
    [--sides python,torchforce,theirs] [--atoms 774 5000] [--models nequip_md] [--files FOLDER [--compile-only]]

All sides of a case have the same weights and structure and take turns. `step_ms` is the mean time of a step of 0.5 fs,
neighbours listed anew every 40 steps included (peers/water_flow.py says how the atoms move); `call_ms` that of a call
of the compiled model with a graph that is there, and `overhead_percent` what a step takes beyond it; `openmm_ms` is a
step of OpenMM without any force. The interpreter of --theirs, or the folder of --their-path, has nequip, openmm and
openmmml. --files keeps models and systems; --compile-only makes them and measures nothing, so that several models can
be compiled at the same time.

On a GPU, with the wheels openmm 8.6.1, openmm-cuda-13 and acellera-openmmtorch-cu13 1.10 in a folder, torch 2.11:

    pip install --no-index --no-deps WHEELS/*.whl && python benchmarks/openmm.py --device cuda --out openmm.csv
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.remove(str(Path(__file__).parent))  # where this file would be taken for the package openmm
from openmm import app, unit
from our_calls import package
from sides import Program, Side, compare, hardware, start, write

from nequip_core.cli.main import main as nequip

FIGURES = ("step_ms", "ns_per_day", "call_ms", "openmm_ms", "overhead_percent")
TYPES = ["H", "O"]


def water(atoms: int, path: Path) -> None:
    """A box of water at its density, as a PDB file."""
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(app.ForceField("tip3p.xml"), numAdded=max(1, round(atoms / 3)))
    with path.open("w") as file:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, file)


def make_model(model: str, folder: Path, device: str, them: Program | None) -> None:
    """model.nequip.pt2 for us; last.ckpt of the same weights for them."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "model.nequip.zip"
    if them is None:
        package(model, TYPES, source)
    else:
        command = [them.python, str(Path(__file__).parent / "peers" / them.script), "make", model, str(folder)]
        environment = os.environ | ({"PYTHONPATH": them.path} if them.path else {})
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        if nequip(["convert", str(folder / "last.ckpt"), str(source)]):
            sys.exit("their checkpoint could not be converted")
    if nequip(["compile", str(source), str(folder / "model.nequip.pt2"), "--target", "openmm", "--device", device]):
        sys.exit("the model could not be compiled")


def prepare(model: str, sizes: list[int], folder: Path, device: str, them: Program | None) -> list[Path]:
    """The folders of the systems, in the folder of the model; what is there is kept."""
    wanted = [folder / "model.nequip.pt2"] + ([] if them is None else [folder / "last.ckpt"])
    if not all(path.exists() for path in wanted):
        make_model(model, folder, device, them)
    cases = [folder / f"water_{atoms}" for atoms in sizes]
    for atoms, case in zip(sizes, cases, strict=True):
        case.mkdir(exist_ok=True)
        if not (case / "system.pdb").exists():
            water(atoms, case / "system.pdb")
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--theirs", default="", help="interpreter with the published package, openmm and openmmml")
    parser.add_argument("--their-path", default="", help="folder of these, if they are not installed there")
    parser.add_argument("--sides", default="python,torchforce,theirs", help="the first is compared with the others")
    parser.add_argument("--models", nargs="+", default=["nequip_md"])
    parser.add_argument("--atoms", nargs="+", type=int, default=[774, 5000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a small model and few atoms, to try this script")
    parser.add_argument("--files", type=Path, help="folder where models and systems are kept, or found")
    parser.add_argument("--compile-only", action="store_true", help="only make what --files keeps")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    known = {
        "python": Program(sys.executable, "our_openmm.py", "python"),
        "torchforce": Program(sys.executable, "our_openmm.py", "torchforce"),
        "theirs": Program(options.theirs or sys.executable, "their_openmm.py", "openmmml", options.their_path),
    }
    wanted = options.sides.split(",")
    if "theirs" in wanted and not (options.theirs or options.their_path):
        print("The published package is not here: --theirs names its interpreter.", flush=True)
        wanted.remove("theirs")
    programs = {name: known[name] for name in wanted}
    rows: list[dict[str, object]] = []
    sizes = [81] if options.tiny else options.atoms
    remarks = {"hardware": hardware(options.device, options.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder = (options.files or Path(name)).resolve()
        cases = [
            (model, str(case))
            for model in (["nequip_tiny"] if options.tiny else options.models)
            for case in prepare(model, sizes, folder / model, options.device, programs.get("theirs"))
        ]
        if options.compile_only:
            return

        def begin(case: tuple[str, str]) -> dict[str, Side]:
            return start(programs, case, options.device, options.threads)

        ready = {case: begin(case) for case in cases} if options.device == "cuda" else {}  # which saves a minute
        for side in [side for sides in ready.values() for side in sides.values()]:
            side.wait()
        for case in cases:
            found = compare(ready.get(case) or begin(case), case, FIGURES, options.rounds, remarks)
            rows += [{**row, "system": Path(case[1]).name} for row in found]
            write(options.out, rows)


if __name__ == "__main__":
    main()
