"""Runs of `nequip train` in several processes, on a small data set whose frames are as unlike as frames may be."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_core.export.package import Members, read_package

CONFIG = """\
defaults:
  - base
  - model: nequip
  - _self_
seed: 3
data:
  path: data.xyz
  cache: cache
  split: {train: 15, val: 3, by: order}
  batch: {size: 4}
model: {dtype: float64, cutoff: 3.2, num_layers: 2, l_max: 1, num_features: 4, radial_mlp: [4], num_bessels: 4}
training:
  loss: {stress: {weight: 1.0}}
  optimizer: {lr: 0.01, args: {amsgrad: true}}
  scheduler: {name: plateau, args: {factor: 0.8, patience: 0}}
  ema_decay: 0.9
  gradient_clip: 0.5
trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}
loggers: [csv]
"""
TIMES = {"time_s", "step_s", "data_wait"}


def frames() -> list[Atoms]:
    """Molecules and crystals of copper and gold of 2 to 8 atoms; some without energy, forces or stress."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(18):
        crystal = ase.build.bulk("Cu", cubic=True)
        atoms = [Atoms("Cu2", [[0, 0, 0], [2.3, 0, 0]]), crystal, crystal.repeat((2, 1, 1))][n % 3].copy()
        atoms.numbers[0] = 79
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.pbc.all() and n % 4:
            labels["stress"] = atoms.get_stress()
        if n % 5 == 4:
            del labels["forces"]
        if n % 7 == 6:
            del labels["energy"]
        atoms.calc = SinglePointCalculator(atoms, **labels)
        made.append(atoms)
    return made


class Work:
    """A folder with a config and data, in which runs are started; none outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        ase.io.write(folder / "data.xyz", frames(), format="extxyz")
        (folder / "run.yaml").write_text(CONFIG)

    def start(self, *words: object, launcher: Sequence[object] = (), **environment: object) -> subprocess.Popen[str]:
        """``nequip train run.yaml ...``"""
        command = [sys.executable, *launcher, "-m", "nequip_core", "train", "run.yaml", *words]
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": paths, **{name: str(value) for name, value in environment.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.started.append(process)
        return process

    def run(self, *words: object, code: int = 0, **options: Any) -> tuple[str, str]:
        """The same to its end: what it has printed."""
        return self.end(self.start(*words, **options), code)

    @staticmethod
    def end(process: subprocess.Popen[str], code: int = 0, timeout: float = 900) -> tuple[str, str]:
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == code, out + err
        return out, err

    def rows(self, run: str, table: str = "metrics") -> list[dict[str, float | None]]:
        """Of a table, without times."""
        with (self.folder / run / f"{table}.csv").open(newline="") as file:
            return [
                {name: float(value) if value else None for name, value in row.items() if name not in TIMES}
                for row in csv.DictReader(file)
            ]

    def checkpoint(self, run: str, name: str = "last") -> Members:
        return read_package(self.folder / run / "checkpoints" / f"{name}.ckpt", training=True)

    def wait_for(self, run: str, step: int, process: subprocess.Popen[str]) -> None:
        """Until a step's row is written."""
        path = self.folder / run / "steps.csv"
        while not path.is_file() or len(path.read_text().splitlines()) < step + 1:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)

    def leftovers(self, patience: float = 20.0) -> list[str]:
        """Processes that were started here and live. One that held a GPU's memory takes seconds to die."""
        end = time.monotonic() + patience
        while (found := self._alive()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _alive(self) -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    there = (entry / "cwd").readlink() == self.folder
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                except (FileNotFoundError, PermissionError, ProcessLookupError):
                    continue
                if there:
                    found.append(f"{entry.name} {state}")
        return found


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    made = Work(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Tables of numbers, or dictionaries of tensors."""
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_close(mine, other, tolerance)
        return
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(
            np.asarray(value, dtype=float), np.asarray(theirs[name], dtype=float), rtol=0, atol=tolerance, err_msg=name
        )


@pytest.fixture
def close() -> Callable[[Any, Any, float], None]:
    return assert_close
