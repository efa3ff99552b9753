"""Train in one piece, and interrupted at random steps by SIGINT, SIGTERM or SIGKILL; the results must be the same bits.

    python tests/core/cli/interruptions.py FOLDER --count 20 --seed 1 data.workers=2 data.batch.max_edges=60

Compared are metrics.csv and steps.csv without their times, both checkpoints (weights, averages, optimizer, scheduler)
and the files of evaluation. FOLDER is made. Each start is a fork of this process, which has imported all and computed
nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.calculators.emt import EMT

from nequip_core.cli import running
from nequip_core.cli.main import main
from nequip_core.export.package import Members, read_package

CONFIG = """\
defaults:
  - base
  - model: nequip
  - _self_
seed: 3
data:
  path: data.xyz
  split: {train: 11, val: 3, test: rest}
  batch: {size: 2}
model: {cutoff: 3.0, num_layers: 2, l_max: 1, num_features: 4, radial_mlp: [4], num_bessels: 4}
training:
  optimizer: {lr: 0.01, args: {amsgrad: true}}
  scheduler: {name: plateau, args: {factor: 0.8, patience: 1}}
  ema_decay: 0.9
  gradient_clip: 10.0
  checkpoint_every: 2
  keep_every: 5
trainer: {max_epochs: 12, accelerator: cpu, log_every_n_steps: 1}
loggers: [csv]
"""
STEPS = 12 * 6
TIMES = {"time_s", "step_s", "data_wait"}
"""Columns that no two runs have in common."""


def frames() -> list[Atoms]:
    """Copper and gold, shaken."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(16):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.numbers[0] = 79 if n % 2 else 29
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        made.append(atoms)
    return made


def start(run: str, overrides: Sequence[str]) -> int:
    """`nequip train` in a process of its own; returns its number."""
    # A signal that comes while Python mends itself after the fork would be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    process = os.fork()
    if process:
        os.setpgid(process, process)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process
    code = 1
    try:
        os.setpgid(0, 0)  # in both, since nobody knows which comes first
        with Path(f"{run}.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = main(["train", "run.yaml", f"run.dir={run}", *overrides])
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def steps_done(run: str) -> int:
    """The step of the last whole row of steps.csv."""
    try:
        lines = Path(run, "steps.csv").read_text().rpartition("\n")[0].splitlines()
    except FileNotFoundError:
        return 0
    return int(lines[-1].split(",")[1]) if len(lines) > 1 else 0


def interrupt(run: str, overrides: Sequence[str], step: int, kind: signal.Signals, wait: float) -> int:
    """Start, send a signal some time after a step's row is there, and return the exit code, or minus the signal."""
    process = start(run, overrides)
    while steps_done(run) < step:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            raise SystemExit(f"ended before step {step} with {os.waitstatus_to_exitcode(status)}; see {run}.txt")
        time.sleep(0.0005)
    time.sleep(wait)
    if kind == signal.SIGKILL:
        os.kill(process, kind)
    else:
        os.killpg(process, kind)  # terminals and schedulers send them to workers too
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def whole(run: str, overrides: Sequence[str]) -> None:
    """Start and let it end."""
    code = os.waitstatus_to_exitcode(os.waitpid(start(run, overrides), 0)[1])
    if code:
        raise SystemExit(f"{run} ended with {code}; see {run}.txt")


def rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file, without times."""
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def evaluation(path: Path) -> Any:
    """Of a set, without what belongs to the folder and the moment."""
    found = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name not in ("time_s", "model")}


def same_checkpoints(one: Members, two: Members) -> bool:
    """Weights, averages, optimizer and scheduler, bit for bit."""
    assert one.training is not None
    assert two.training is not None
    pairs = [
        (one.weights, two.weights),
        (one.training.raw, two.training.raw),
        (one.training.optimizer_tensors, two.training.optimizer_tensors),
    ]
    return (
        all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
        and one.metrics == two.metrics
        and one.training.state["scheduler"] == two.training.state["scheduler"]
        and one.training.state["global_step"] == two.training.state["global_step"]
    )


def differences(one: Path, two: Path) -> list[str]:
    """Files that are not the same in two folders."""
    found = [name for name in ("metrics.csv", "steps.csv") if rows(one / name) != rows(two / name)]
    checkpoints = sorted(path.name for path in (one / "checkpoints").iterdir())
    if checkpoints != sorted(path.name for path in (two / "checkpoints").iterdir()):
        found.append("names in checkpoints/")
    else:
        for name in checkpoints:
            pair = [read_package(folder / "checkpoints" / name, training=True) for folder in (one, two)]
            if not same_checkpoints(*pair):
                found.append(f"checkpoints/{name}")
    for path in sorted((one / "evaluation").glob("*.json")):
        if evaluation(path) != evaluation(two / "evaluation" / path.name):
            found.append(f"evaluation/{path.name}")
    return found


def run(folder: Path, count: int, seed: int, overrides: Sequence[str]) -> int:
    """Train twice and compare; the exit code."""
    torch.set_num_threads(1)
    running.write_report = lambda path: path / "report.html"  # seconds of plots, which are made from the same files
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    ase.io.write("data.xyz", frames(), format="extxyz")
    Path("run.yaml").write_text(CONFIG)
    whole("straight", overrides)
    chance = random.Random(seed)
    for step in sorted(chance.sample(range(1, STEPS - 2), count)):
        kind = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        code = interrupt("interrupted", overrides, step, kind, chance.uniform(0.0, 0.03))
        print(f"{kind.name} after step {step}: exit {code}, {steps_done('interrupted')} steps written", flush=True)
        # Ctrl-C in the last step ends nothing that was not at its end; SIGTERM before anything is read ends Python.
        if code not in (130, -signal.SIGKILL, -signal.SIGTERM) and (code, steps_done("interrupted")) != (0, STEPS):
            raise SystemExit("unexpected exit code; see interrupted.txt")
    whole("interrupted", overrides)
    leftovers = [str(path) for path in Path("interrupted").rglob("*.tmp")]
    found = differences(Path("straight"), Path("interrupted")) + leftovers
    print(f"{count} interruptions: {'different: ' + ', '.join(found) if found else 'the same bits'}")
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="of both runs")
    options = parser.parse_intermixed_args()
    sys.exit(run(options.folder, options.count, options.seed, options.overrides))
