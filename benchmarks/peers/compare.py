"""Ours against the published nequip and allegro, both eager, in alternation: training step and evaluation.

python benchmarks/peers/compare.py OUR_PYTHON THEIR_PYTHON [--rounds 5] [--threads 2] [--device cpu] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sides import Program, compare, hardware, start, write
from timing import SECONDS

CASES = {
    "cpu": (
        ("nequip", "silicon_64"),
        ("nequip", "ethanol_5x9"),
        ("allegro_2", "water_192"),
        ("allegro_3", "water_192"),
    ),
    "cuda": (
        ("nequip", "silicon_64"),
        ("nequip", "water_1536"),
        ("allegro_2", "water_192"),
        ("allegro_2", "water_1536"),
        ("allegro_3", "water_1536"),
    ),
}
FIGURES = ("train_ms", "evaluate_ms", "train_mb", "evaluate_mb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--their-path", default="", help="folder of the published packages, if they are not installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=list(CASES))
    parser.add_argument("--seconds", default="4", help="of timing for each figure of a round")
    parser.add_argument("--hardware", default="", help="for the table")
    parser.add_argument("--only", default="", help="cases whose names hold one of these words (a,b)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ[SECONDS] = options.seconds
    programs = {
        "ours": Program(options.ours, "ours.py", "eager"),
        "ours, no kernels": Program(options.ours, "ours.py", "eager-reference"),
        "theirs": Program(options.theirs, "theirs.py", "eager", options.their_path),
    }
    if options.device == "cpu":  # where there are none
        del programs["ours, no kernels"]
    remarks = {"hardware": options.hardware or hardware(options.device, options.threads)}
    rows = []
    for case in CASES[options.device]:
        if any(word in " ".join(case) for word in options.only.split(",")):
            sides = start(programs, case, options.device, options.threads)
            rows += compare(sides, case, FIGURES, options.rounds, remarks)
            write(options.out, rows)


if __name__ == "__main__":
    main()
