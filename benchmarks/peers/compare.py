"""Ours against the published nequip and allegro: two interpreters alternate, so that noise troubles both alike.

python benchmarks/peers/compare.py OUR_PYTHON THEIR_PYTHON [--rounds 5] [--threads 2] [--device cpu] [--out FILE.csv]

--mode compiled: training steps that either side compiles in its own way, and ours in eager mode beside them. Compiling
comes first, all cases and sides at once; what is measured afterwards finds it in the caches.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
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
COMPILED = (("allegro_64", "molecules_32x30"), ("nequip_64", "molecules_32x30"))
FIGURES = {"eager": ("train_ms", "evaluate_ms", "train_mb", "evaluate_mb"), "compiled": ("train_ms", "train_mb")}


def start(python: str, script: str, case: tuple[str, str], mode: str, options: argparse.Namespace) -> subprocess.Popen:
    """One process, one side."""
    command = [python, str(HERE / script), *case, str(options.threads), options.device, mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen) -> dict[str, float]:
    """Its last line."""
    out, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(process.args)} failed:\n{errors}")
    result: dict[str, float] = json.loads(out.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default="eager", choices=("eager", "compiled"))
    parser.add_argument("--hardware", default="", help="for the table")
    parser.add_argument("--only", default="", help="cases whose names hold this word")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    cases = CASES[options.device] if options.mode == "eager" else COMPILED
    cases = [case for case in cases if options.only in " ".join(case)]
    sides = {
        "ours": (options.ours, "ours.py", options.mode),
        "theirs": (options.theirs, "theirs.py", options.mode),
        **({"ours, eager": (options.ours, "ours.py", "eager")} if options.mode == "compiled" else {}),
    }
    if options.mode == "compiled":
        compiling = [
            start(*sides[side][:2], case, "compiled", options) for case in cases for side in ("ours", "theirs")
        ]
        for process in compiling:
            print("compiled:", result_of(process), flush=True)
    for case in cases:
        rounds = [
            {
                side: result_of(start(python, script, case, mode, options))
                for side, (python, script, mode) in sides.items()
            }
            for _ in range(options.rounds)
        ]
        for figure, other in itertools.product(FIGURES[options.mode], list(sides)[1:]):
            ours, theirs = (np.array([one[side][figure] for one in rounds]) for side in ("ours", other))
            ratio = theirs / ours
            rows.append(
                {
                    "date": datetime.now(UTC).date().isoformat(),
                    "hardware": options.hardware or f"{options.device}, {options.threads} threads",
                    "model": case[0],
                    "system": case[1],
                    "mode": options.mode,
                    "figure": figure,
                    "other": other,
                    "ours_median": round(float(np.median(ours)), 2),
                    "other_median": round(float(np.median(theirs)), 2),
                    "other_over_ours_median": round(float(np.median(ratio)), 2),
                    "min": round(float(ratio.min()), 2),
                    "max": round(float(ratio.max()), 2),
                    "rounds": options.rounds,
                }
            )
            print(rows[-1], flush=True)
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
