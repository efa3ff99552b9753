"""nequip evaluate on the validation set gives the numbers of metrics.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from nequip_core.cli import running
from nequip_core.cli.main import main

CONFIG = """\
defaults:
  - base
  - model: nequip
  - _self_
data: {path: train.xyz, val_path: val.xyz, split: {train: rest, val: 0}, cache: 'off'}
model: {cutoff: 4.0, num_layers: 2, l_max: 2, num_features: 8, radial_mlp: [8], readout_mlp: [8]}
training:
  loss: {stress: {weight: 1.0}}
  ema_decay: 0.9
trainer: {max_epochs: 2, accelerator: cpu}
loggers: []
"""


def frames(count: int, seed: int) -> list[Atoms]:
    """Molecules of two to four atoms, and cells of copper with gold."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        atoms = [ase.build.molecule("N2"), ase.build.molecule("H2O"), ase.build.bulk("Cu", cubic=True)][n % 3]
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        made.append(atoms)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "write_report", lambda path: path / "report.html")
    ase.io.write("train.xyz", frames(6, 0), format="extxyz")
    ase.io.write("val.xyz", frames(17, 1), format="extxyz")
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


def rows() -> list[dict[str, float]]:
    """Of metrics.csv; the last one is that of last.ckpt."""
    with Path("run/metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def best_row() -> dict[str, float]:
    """Of metrics.csv, what best.ckpt has."""
    best = json.loads(Path("run/run.json").read_text())["best_epoch"]
    (row,) = (row for row in rows() if row["epoch"] == best)
    return row


def evaluate(*words: str) -> dict[str, Any]:
    assert main(["evaluate", "run", "val.xyz", "--json", "out.json", *words]) == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


def worst(results: dict[str, Any], row: dict[str, float]) -> float:
    """Largest relative difference of all errors."""
    pairs: Sequence[tuple[float, float]] = [
        (results[quantity][kind], row[f"val_{quantity}_{kind}"])
        for quantity in ("energy", "energy_per_atom", "forces", "stress")
        for kind in ("mae", "rmse")
    ]
    return max(abs(one - two) / two for one, two in pairs)


@pytest.mark.parametrize(("size", "dtype"), [(1, "float64"), (7, "float32"), (64, "float32"), (64, "float64")])
def test_evaluation_is_the_validation(folder: Path, dtype: str, size: int) -> None:
    assert main(["train", "run.yaml", "run.dir=run", f"model.dtype={dtype}", f"data.batch.eval_size={size}"]) == 0
    row = best_row()
    stored = json.loads(Path("run/evaluation/val.json").read_text())
    assert worst(stored, row) < 1e-12
    assert worst(evaluate(), row) < 1e-12
    assert worst(evaluate("--checkpoint", "last"), rows()[-1]) < 1e-12
    # Other batches are rounded otherwise, by the model's dtype: matrix products of few rows, ends of vector loops.
    for atoms in ("1", "20", "1000"):
        assert worst(evaluate("--batch-atoms", atoms), row) < {"float64": 1e-12, "float32": 1e-5}[dtype]


def test_validation_in_pieces(folder: Path) -> None:
    assert main(["train", "run.yaml", "run.dir=run", "data.batch.max_edges=60"]) == 0
    assert worst(evaluate(), best_row()) < 1e-12
