"""The same frames in other units are the same training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.stress import voigt_6_to_full_3x3_stress

from nequip_core import units
from nequip_core.cli import running
from nequip_core.cli.main import main
from nequip_core.data.read import read
from nequip_core.engines.evaluate import predictor
from nequip_core.export.artifact import load_model
from nequip_core.plugins.manager import load_registry

CONFIG = """\
defaults: [base, {model: nequip}, _self_]
data: {split: {train: 5, val: 2}, batch: {size: 2}}
model: {cutoff: 3.0, dtype: float64, num_layers: 2, l_max: 1, num_features: 4, radial_mlp: [4], num_bessels: 4}
training: {loss: {stress: {weight: 10.0}}}
trainer: {max_epochs: 3, accelerator: cpu}
loggers: []
"""

VARIANTS = {
    "plain": {},
    "atomic": {
        "data.units.length": "Bohr",
        "data.units.energy": "Hartree",
        "data.units.stress": "kbar",
        "data.units.stress_sign": "compression_positive",
    },
    "chemists": {"data.units.energy": "kcal/mol", "data.keys.virial": "virial"},
}


def frames() -> list[Atoms]:
    rng = np.random.default_rng(0)
    made = []
    for n in range(7):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.numbers[0] = 79 if n % 2 else 29
        atoms.set_cell(atoms.cell.array + rng.normal(scale=0.05, size=(3, 3)), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        made.append(atoms)
    return made


def numbers(array: Any) -> str:
    return " ".join(repr(float(value)) for value in np.ravel(array))


def write(path: Path, settings: dict[str, str]) -> None:
    """Every number with all its digits: ASE writes eight."""
    length = units.LENGTH[settings.get("data.units.length", "Angstrom")]
    energy = units.ENERGY[settings.get("data.units.energy", "eV")]
    lines = []
    for atoms in frames():
        stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
        label = f'stress="{numbers(stress)}"'
        if "data.units.stress" in settings:
            label = f'stress="{numbers(-stress / units.STRESS["kbar"])}"'
        if "data.keys.virial" in settings:
            label = f'virial="{numbers(-stress * atoms.get_volume() / energy)}"'
        lines += [
            str(len(atoms)),
            f'Lattice="{numbers(atoms.cell.array / length)}" Properties=species:S:1:pos:R:3:forces:R:3 '
            f'energy={numbers(atoms.get_potential_energy() / energy)} {label} pbc="T T T"',
        ]
        lines += [
            f"{symbol} {numbers(x / length)} {numbers(f / energy * length)}"
            for symbol, x, f in zip(atoms.symbols, atoms.positions, atoms.get_forces(), strict=True)
        ]
    path.write_text("\n".join(lines) + "\n")


def test_predictions_and_loss_curves_do_not_depend_on_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "write_report", lambda path: path / "report.html")
    Path("run.yaml").write_text(CONFIG)
    curves, predictions = {}, {}
    registry = load_registry()
    for name, settings in VARIANTS.items():
        write(Path(f"{name}.xyz"), settings)
        words = [f"{key}={value}" for key, value in settings.items()]
        assert main(["train", "run.yaml", f"data.path={name}.xyz", f"run.dir={name}", *words]) == 0
        with Path(name, "metrics.csv").open() as file:
            rows = [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(file)]
        curves[name] = np.array([[float(value) for value in row.values()] for row in rows])
        found = predictor(load_model(name, registry=registry), registry)(list(read("plain.xyz")))
        predictions[name] = [found.energy, found.forces, found.virial]
    assert curves["plain"].shape[0] == 3
    for name in ("atomic", "chemists"):
        np.testing.assert_allclose(curves[name], curves["plain"], rtol=1e-10, atol=1e-10)
        for found, expected in zip(predictions[name], predictions["plain"], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
