"""Weak scaling of `nequip train` over processes: the same edges for each, loading and launching as in any run.

python benchmarks/scaling.py [--device cuda] [--processes 1 2 4] [--model allegro] [--out FILE.csv] [--tiny]

Molecules of one size are trained on with `data.batch.size` = structures per process * processes; they are as many
more, so that epochs have the same number of steps. The step time is that of steps.csv, whose rows are read when the
device has done their steps. Efficiency is the step time of the first number of processes over that of another; rounds
alternate, so that noise troubles all alike.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from sides import hardware, today, write
from systems import globules

SHAPES = 16
"""Molecules that are placed anew; the others are these, displaced."""

CONFIG = """\
defaults: [base, {{model: {model}}}, _self_]
loggers: [csv]
data:
  path: data.xyz
  cache: cache
  split: {{train: {train}, val: 8, by: order}}
  batch: {{size: {size}}}
  workers: {workers}
model: {keys}
training: {{compile: {compile}, optimizer: {{lr: 1.0e-6}}, checkpoint_every: 1000000}}
trainer:
  accelerator: {device}
  devices: {processes}
  max_epochs: -1
  max_steps: {steps}
  check_val_every_n_epoch: 1000000
  log_every_n_steps: {every}
  enable_progress_bar: false
"""

KEYS: dict[str, dict[str, object]] = {
    "allegro": {"cutoff": 5.0, "l_max": 2, "num_layers": 2, "num_scalar_features": 64, "num_tensor_features": 64},
    "nequip": {"cutoff": 5.0, "l_max": 2, "num_layers": 4, "num_features": 64},
}
TINY: dict[str, dict[str, object]] = {
    "allegro": {"cutoff": 5.0, "l_max": 1, "num_layers": 1, "num_scalar_features": 8, "num_tensor_features": 4},
    "nequip": {"cutoff": 5.0, "l_max": 1, "num_layers": 1, "num_features": 4},
}
COMMON = {
    "types": ["H", "C", "O"],
    "atomic_energies": {"H": -1.0, "C": -1.0, "O": -1.0},
    "energy_scale": 1.0,
    "avg_num_neighbors": 20.0,
}
"""Given, so that all numbers of processes train one model, whose compiled step they find in the caches."""


def frames(count: int, atoms: int) -> list[Atoms]:
    """Molecules with random labels."""
    rng = np.random.default_rng(0)
    shapes = globules(SHAPES, atoms)
    for shape in shapes:
        shape.numbers[:3] = 1, 6, 8
    made = []
    for shape in itertools.islice(itertools.cycle(shapes), count):
        one = shape.copy()
        one.positions += rng.normal(scale=0.02, size=(atoms, 3))
        one.calc = SinglePointCalculator(one, energy=rng.normal() - atoms, forces=rng.normal(size=(atoms, 3)))
        made.append(one)
    return made


def train(folder: Path, name: str, processes: int, options: argparse.Namespace) -> dict[str, float]:
    """One run: seconds of a step, and the share of them that waited for data."""
    text = CONFIG.format(
        model=options.model,
        keys=json.dumps((TINY if options.tiny else KEYS)[options.model] | COMMON),
        train=options.frames * processes,
        size=options.structures * processes,
        workers=options.workers,
        compile="false" if options.eager else "true",
        device=options.device,
        processes=processes,
        steps=options.steps,
        every=options.every,
    )
    (folder / f"{name}.yaml").write_text(text)
    command = [sys.executable, "-m", "nequip_core", "train", f"{name}.yaml", f"run.dir={name}"]
    threads = {"OMP_NUM_THREADS": "1"} if options.device == "cpu" else {}
    done = subprocess.run(command, cwd=folder, env=os.environ | threads, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    run = json.loads((folder / name / "run.json").read_text())
    assert run["world_size"] == processes
    with (folder / name / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[1:]  # without the first steps
    found = {key: float(np.median([float(row[key]) for row in rows])) for key in ("step_s", "data_wait")}
    print(f"{name}: {1e3 * found['step_s']:.2f} ms/step, waiting {found['data_wait']:.1%}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="allegro", choices=list(KEYS))
    parser.add_argument("--structures", type=int, default=64, help="of a process in a step")
    parser.add_argument("--atoms", type=int, default=30, help="of a structure")
    parser.add_argument("--frames", type=int, default=4096, help="to train on, for each process")
    parser.add_argument("--steps", type=int, default=600, help="of a run")
    parser.add_argument("--every", type=int, default=100, help="steps between rows of steps.csv; the first is left out")
    parser.add_argument("--workers", type=int, default=4, help="that load data, of a process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="with training.compile=false")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try this script")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.steps < 2 * options.every:
        parser.error("--steps must be at least twice --every")
    times: dict[int, list[float]] = {processes: [] for processes in options.processes}
    waits: dict[int, list[float]] = {processes: [] for processes in options.processes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        molecules = frames(options.frames * max(options.processes) + 8, options.atoms)
        ase.io.write(folder / "data.xyz", molecules, format="extxyz")
        for turn, processes in itertools.product(range(options.rounds), options.processes):
            found = train(folder, f"round{turn}_processes{processes}", processes, options)
            times[processes].append(found["step_s"])
            waits[processes].append(found["data_wait"])
    first = np.array(times[options.processes[0]])
    rows = []
    for processes, measured in times.items():
        efficiency = first / np.array(measured)
        rows.append(
            {
                "date": today(),
                "hardware": hardware(options.device, 1),
                "model": options.model + (" tiny" if options.tiny else ""),
                "mode": "eager" if options.eager else "compiled",
                "structures_per_process": options.structures,
                "atoms_per_structure": options.atoms,
                "processes": processes,
                "step_ms_median": round(1e3 * float(np.median(measured)), 3),
                "data_wait_median": round(float(np.median(waits[processes])), 4),
                "efficiency_median": round(float(np.median(efficiency)), 3),
                "min": round(float(efficiency.min()), 3),
                "max": round(float(efficiency.max()), 3),
                "rounds": options.rounds,
            }
        )
        print(rows[-1], flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
