"""Ours against the published nequip, eager: two interpreters alternate, so that a noisy machine troubles both alike.

    python benchmarks/peers/eager.py OUR_PYTHON THEIR_PYTHON [--rounds 5] [--threads 2] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SYSTEMS = ("silicon_64", "ethanol_5x9")
FIGURES = ("train_ms", "evaluate_ms")


def measure(python: str, script: str, system: str, threads: int) -> dict[str, float]:
    """One process, one side."""
    command = [python, str(HERE / script), system, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for system in SYSTEMS:
        rounds = [
            (
                measure(options.ours, "ours.py", system, options.threads),
                measure(options.theirs, "theirs.py", system, options.threads),
            )
            for _ in range(options.rounds)
        ]
        for figure in FIGURES:
            ours, theirs = (np.array([pair[side][figure] for pair in rounds]) for side in (0, 1))
            ratio = theirs / ours
            rows.append(
                {
                    "date": datetime.now(UTC).date().isoformat(),
                    "hardware": f"{platform.processor() or platform.machine()}, {options.threads} threads",
                    "system": system,
                    "figure": figure,
                    "ours_median": round(float(np.median(ours)), 2),
                    "theirs_median": round(float(np.median(theirs)), 2),
                    "ratio_median": round(float(np.median(ratio)), 2),
                    "ratio_min": round(float(ratio.min()), 2),
                    "ratio_max": round(float(ratio.max()), 2),
                    "rounds": options.rounds,
                }
            )
            print(rows[-1])
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
