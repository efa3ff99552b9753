"""Time from the command to the first step with a large data set, first without and then with a cache.

python benchmarks/data/start.py FILE... [--steps 100] [--out FILE.csv]

Prints for each start: seconds on the clock until `nequip train` begins its steps, seconds of the processor until then
(on a shared machine the clock shows what others do too), the largest memory of the process, the time of a step and the
share of it that was waiting for data.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

CONFIG = """\
defaults: [base, {model: nequip_starter}, _self_]
data: {batch: {size: 5}, split: {train: 0.95, val: 64}}
model: {cutoff: 5.0}
training: {optimizer: {lr: 0.01}}
"""
BEGINS = "Training in"


def processor_seconds(pid: int) -> float:
    """User and system time of a process and its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def peak_memory_mb(pid: int) -> float:
    """The most that a process has held so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def start(files: list[str], folder: Path, name: str, steps: int) -> dict[str, float]:
    """Train for some steps; what was measured."""
    values = {
        "data.path": f"[{','.join(files)}]",
        "run.dir": folder / name,
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": steps,
        "trainer.log_every_n_steps": steps,
    }
    command = [sys.executable, "-m", "nequip_core", "train", str(folder / "large.yaml")]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, *(f"{key}={value}" for key, value in values.items())],
        env={**os.environ, "NEQUIP_CACHE_DIR": str(folder / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found: dict[str, float] = {}
    for line in process.stdout:
        if line.startswith(BEGINS):
            found = {"clock_s": time.perf_counter() - begin, "processor_s": processor_seconds(process.pid)}
        elif found:
            found["memory_mb"] = peak_memory_mb(process.pid)
    if process.wait() or not found:
        sys.exit(f"nequip train ended with code {process.returncode}")
    with (folder / name / "steps.csv").open(encoding="utf-8") as file:
        row = list(csv.DictReader(file))[-1]
    return {**found, "step_ms": 1000 * float(row["step_s"]), "data_wait": float(row["data_wait"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="+")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hardware", default=f"{len(os.sched_getaffinity(0))} cores (CPU)", help="for the table")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.yaml").write_text(CONFIG, encoding="utf-8")
        for which in ("first", "second"):
            load = os.getloadavg()[0]
            measured = start(options.files, folder, which, options.steps)
            rows.append(
                {
                    "date": datetime.now(UTC).date().isoformat(),
                    "hardware": options.hardware,
                    "files": len(options.files),
                    "start": which,
                    "load_average": round(load, 1),
                    **{key: round(value, 4 if key == "data_wait" else 1) for key, value in measured.items()},
                }
            )
            print(rows[-1], flush=True)
    if options.out:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
