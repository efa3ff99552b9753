"""Keys of training and trainer that no other test of a run touches: each changes what a run does."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT

from nequip_core.cli import running
from nequip_core.cli.main import main
from nequip_core.export.artifact import load_model
from nequip_core.plugins.manager import load_registry

pytestmark = pytest.mark.no_cover
CONFIG = """\
defaults: [base, {model: nequip}, _self_]
data: {path: data.xyz, split: {train: 8, val: 2}, batch: {size: 2}, cache: 'off'}
model: {cutoff: 3.0, num_layers: 1, l_max: 1, num_features: 4, radial_mlp: [4], num_bessels: 4}
trainer: {max_epochs: 3, accelerator: cpu, log_every_n_steps: 2}
loggers: [csv]
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "write_report", lambda path: path / "report.html")
    rng = np.random.default_rng(0)
    made = []
    for n in range(10):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.1, size=(4, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.info["importance"] = 1.0 + n
        made.append(atoms)
    ase.io.write("data.xyz", made, format="extxyz")
    Path("run.yaml").write_text(CONFIG)


def rows(name: str, *words: str) -> list[dict[str, str]]:
    """metrics.csv of a run with these overrides, without times."""
    assert main(["train", "run.yaml", f"run.dir={name}", *words]) == 0
    with Path(name, "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(file)]


@cache
def plain(*words: str) -> list[dict[str, str]]:
    """Of a run that others are compared with."""
    return rows("plain", *words)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["trainer.limit_train_batches=3"], [3, 6, 9]),
        (["trainer.limit_train_batches=0.5"], [2, 4, 6]),
        (["trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"], [8, 16]),
        (["trainer.max_steps=6"], [4, 6]),
        (["training.early_stopping_patience=1", "training.optimizer={name: sgd, lr: 1.0e-30}"], [4, 8]),
        (["data.batch.by=atoms", "data.batch.size=16"], [2, 4, 6]),
    ],
)
def test_steps_and_validations(words: list[str], steps: list[int]) -> None:
    assert [int(row["step"]) for row in rows("run", *words)] == steps


@pytest.mark.parametrize(
    "words",
    [
        ["training.loss.energy.function=mae"],
        ["training.loss.energy.per_atom=false"],
        ["training.loss.forces={function: huber, delta: 0.02}"],
        ["training.loss.forces.weight=3"],
        ["training.loss.stress.weight=1"],
        ["training.loss.stress={weight: 100, function: huber, delta: 0.02}"],
        ["training.loss.energy={function: huber, delta: 0.001}"],
        ["model.zbl=true"],
        ["model.train_energy_scale=true"],
        ["model.train_atomic_energies=true"],
        ["model.train_bessels=true"],
        ["model.polynomial_cutoff_p=4"],
        ["data.split.seed=1"],
        ["data.units={energy: Hartree, forces: eV/Angstrom}"],
        ["data.keys.weight=importance"],
        ["training.gradient_clip=0.001", "training.optimizer.name=sgd"],
        ["training.ema_decay=0.5"],
        ["training.scheduler={name: step, interval: step, args: {step_size: 2}}"],
        ["training.optimizer={name: adamw, args: {weight_decay: 0.5}}"],
        ["seed=5"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_trained(words: list[str]) -> None:
    expected = plain(*(word for word in words if word.endswith("name=sgd")))
    assert rows("run", *words)[-1] != expected[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["data.workers=1"],
        ["data.batch.max_edges=100"],
        ["trainer.deterministic=true"],
        ["kernels=reference"],
        ["loggers=[]"],
    ],
    ids=lambda words: words[0],
)
def test_what_has_no_effect_on_the_numbers(words: list[str]) -> None:
    for one, two in zip(rows("run", *words, "model.dtype=float64"), plain("model.dtype=float64"), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert float(one[name] or 0) == pytest.approx(float(two[name] or 0), rel=1e-10), name
    torch.use_deterministic_algorithms(False)


def test_rows_of_steps_and_kept_checkpoints() -> None:
    rows("run", "training.keep_every=2", "training.checkpoint_every=2", "trainer.log_every_n_steps=3")
    with Path("run/steps.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6", "9", "12"]
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == [
        "best.ckpt", "epoch-000002.ckpt", "last.ckpt",
    ]  # fmt: skip


def test_types_and_config_types_by_the_names_of_the_file() -> None:
    made = ase.io.read("data.xyz", ":")
    for n, atoms in enumerate(made):
        atoms.info["kind"] = "odd" if n % 2 else "even"
        atoms.arrays["site"] = np.array(["corner", "face", "face", "face"])
    ase.io.write("data.xyz", made, format="extxyz")
    words = ["data.keys.config_type=kind", "data.keys.type=site", "model.atomic_energies=mean"]
    rows("run", *words, "data.split.by=order", "trainer.max_epochs=1")
    found = json.loads(Path("run/evaluation/val.json").read_text())
    assert {name: row["n_structures"] for name, row in found["per_config_type"].items()} == {"even": 1, "odd": 1}
    assert {name: row["n_atoms"] for name, row in found["per_element"].items()} == {"Cu": 8}
    model = load_model("run", registry=load_registry()).info
    assert (model.types, model.elements) == (("corner", "face"), ("Cu", "Cu"))


def test_a_split_from_a_file_is_kept_with_the_run() -> None:
    chosen = {"train": [9, 2, 4], "val": [0, 1]}
    Path("split.json").write_text(json.dumps(chosen))
    rows("run", "data.split.by=file", "data.split.file=split.json", "trainer.max_epochs=1")
    splits = json.loads(Path("run/data/splits.json").read_text())
    assert splits == chosen | {"test": []}
