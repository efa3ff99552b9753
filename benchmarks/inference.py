"""Energies and forces of water: our compiled files, with kernels and without, our eager calls, and the published
packages' eager calls and compiled files, in alternation.

python benchmarks/inference.py [--device cuda] [--out FILE.csv] [--theirs PYTHON] [--their-path FOLDER] [--tiny]
    [--sides ours,ours_eager,kernels,theirs_eager,theirs,theirs_kernels] [--only WORD]

`call_ms` is a call with the graph on the device; `step_ms` a step of ASE, with the neighbour list and the way to the
host and back. The first of --sides is compared with the others; all sides of a case compile at the same time.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from sides import Program, compare, hardware, start, write

CASES = (
    ("allegro_2", "water_81"),
    ("allegro_2", "water_192"),
    ("allegro_2", "water_1536"),
    ("allegro_2", "water_5184"),
    ("nequip_md", "water_81"),
    ("nequip_md", "water_1536"),
    ("nequip_md", "water_12288"),
)
ON_CPU = (("allegro_2", "water_192"), ("nequip_md", "water_192"))
TINY = (("allegro_tiny", "water_81"), ("nequip_tiny", "water_81"))
FIGURES = ("call_ms", "step_ms", "us_per_atom", "call_mb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--theirs", default="", help="interpreter with the published packages")
    parser.add_argument("--their-path", default="", help="folder of the published packages, if they are not installed")
    parser.add_argument("--sides", default="ours,ours_eager,theirs_eager,theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose names hold this word")
    parser.add_argument("--tiny", action="store_true", help="small models, to try this script")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    them = options.theirs or sys.executable
    known = {
        "ours": Program(sys.executable, "our_calls.py", "file"),
        "kernels": Program(sys.executable, "our_calls.py", "kernels"),
        "ours_eager": Program(sys.executable, "our_calls.py", "eager"),
        "theirs": Program(them, "their_calls.py", "file", options.their_path),
        "theirs_kernels": Program(them, "their_calls.py", "kernels", options.their_path),
        "theirs_eager": Program(them, "their_calls.py", "eager", options.their_path),
    }
    wanted = options.sides.split(",")
    if not (options.theirs or options.their_path or importlib.util.find_spec("nequip")):
        print("The published packages are not here: ours are compared with each other.", flush=True)
        wanted = [name for name in wanted if not name.startswith("theirs")]
    programs = {name: known[name] for name in wanted}
    usual = CASES if options.device == "cuda" else ON_CPU
    cases = [case for case in (TINY if options.tiny else usual) if options.only in " ".join(case)]
    remarks = {"hardware": hardware(options.device, options.threads)}
    rows = []
    for case in cases:
        rows += compare(start(programs, case, options.device, options.threads), case, FIGURES, options.rounds, remarks)
        write(options.out, rows)


if __name__ == "__main__":
    main()
