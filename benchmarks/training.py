"""Compiled training steps of ours against our eager ones and the published packages' compiled ones, in alternation.

python benchmarks/training.py [--device cuda] [--out FILE.csv] [--theirs PYTHON] [--their-path FOLDER] [--tiny]

Forward, forces, loss, backward and Adam, of one batch that stays on the device. On CUDA ours are recorded as `nequip
train` does it, and their memory is all that torch has reserved; "ours, launched" is without recordings, and "ours,
layers" has a kernel for each layer of its networks. Our Adam is fused, as in `nequip train`; theirs is that of their
configs. The published nequip and nequip-allegro are those of --theirs, or of this interpreter where they are installed
in it; where they are not, only ours are compared. On CUDA all sides of all models compile at once, so that the whole
takes minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from sides import Program, compare, hardware, start, write
from timing import SECONDS

CASES = (("allegro_64", "molecules_32x30"), ("nequip_64", "molecules_32x30"))
TINY = (("allegro_tiny", "molecules_4x8"), ("nequip_tiny", "molecules_4x8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--theirs", default="", help="interpreter with the published packages")
    parser.add_argument("--their-path", default="", help="folder of the published packages, if they are not installed")
    parser.add_argument("--sides", default="", help="some, separated by /; the first is compared with the others")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", default="4", help="of timing for each figure of a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose names hold this word")
    parser.add_argument("--tiny", action="store_true", help="small models, to try this script")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ[SECONDS] = options.seconds
    programs = {
        "ours": Program(sys.executable, "ours.py", "compiled"),
        "ours, launched": Program(sys.executable, "ours.py", "compiled-launched"),
        "ours, layers": Program(sys.executable, "ours.py", "compiled-layers"),
        "ours, no kernels": Program(sys.executable, "ours.py", "compiled-reference"),
        "ours, eager, no kernels": Program(sys.executable, "ours.py", "eager-reference"),
    }
    if options.device == "cpu":  # where there are neither CUDA graphs nor kernels
        del programs["ours, launched"], programs["ours, layers"], programs["ours, no kernels"]
    if options.theirs or options.their_path or importlib.util.find_spec("nequip"):
        programs["theirs"] = Program(options.theirs or sys.executable, "theirs.py", "compiled", options.their_path)
    else:
        print("The published packages are not here: ours are compared with each other.", flush=True)
    if options.sides:
        programs = {name: programs[name] for name in options.sides.split("/")}
    cuda = options.device == "cuda"
    figures = ("train_ms", "train_mb") if cuda else ("train_ms",)  # on the CPU compiling takes more than steps
    cases = [case for case in (TINY if options.tiny else CASES) if options.only in " ".join(case)]
    remarks = {"hardware": hardware(options.device, options.threads)}
    started = {case: start(programs, case, options.device, options.threads) for case in cases if cuda}
    rows = []
    for case in cases:
        sides = started.get(case) or start(programs, case, options.device, options.threads)
        rows += compare(sides, case, figures, options.rounds, remarks)
        write(options.out, rows)


if __name__ == "__main__":
    main()
