"""Ours against the published nequip and allegro, eager: two interpreters alternate, so that noise troubles both alike.

python benchmarks/peers/eager.py OUR_PYTHON THEIR_PYTHON [--rounds 5] [--threads 2] [--device cpu] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import csv
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
FIGURES = ("train_ms", "evaluate_ms", "train_mb", "evaluate_mb")


def measure(python: str, script: str, case: tuple[str, str], threads: int, device: str) -> dict[str, float]:
    """One process, one side."""
    command = [python, str(HERE / script), *case, str(threads), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hardware", default="", help="for the table")
    parser.add_argument("--only", default="", help="cases whose names hold this word")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for case in CASES[options.device]:
        if options.only not in " ".join(case):
            continue
        sides = ((options.ours, "ours.py"), (options.theirs, "theirs.py"))
        rounds = [
            [measure(python, script, case, options.threads, options.device) for python, script in sides]
            for _ in range(options.rounds)
        ]
        for figure in FIGURES:
            ours, theirs = (np.array([pair[side][figure] for pair in rounds]) for side in (0, 1))
            ratio = theirs / ours
            rows.append(
                {
                    "date": datetime.now(UTC).date().isoformat(),
                    "hardware": options.hardware or f"{options.device}, {options.threads} threads",
                    "model": case[0],
                    "system": case[1],
                    "figure": figure,
                    "ours_median": round(float(np.median(ours)), 2),
                    "theirs_median": round(float(np.median(theirs)), 2),
                    "theirs_over_ours_median": round(float(np.median(ratio)), 2),
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
