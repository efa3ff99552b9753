"""nequip evaluate."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest

from nequip_core.engines.ase import NequIPCalculator


def test_json_and_frames(nequip, run_folder, water, tmp_path):
    results_file, frames_file = tmp_path / "out.json", tmp_path / "out.extxyz"
    code, out, err = nequip("evaluate", run_folder, water, "--json", results_file, "--write", frames_file)
    assert code == 0
    assert "checkpoint best, raw weights" in err
    results = json.loads(results_file.read_text())
    assert results["n_structures"] == 3
    assert results["data"] == {"path": str(water), "sha256": hashlib.sha256(water.read_bytes()).hexdigest()}
    assert results["model"]["checkpoint"] == "best"

    energies, forces, stresses = [], [], []
    calculator = NequIPCalculator.from_file(run_folder, device="cpu")
    for label, written in zip(ase.io.read(water, ":"), ase.io.read(frames_file, ":"), strict=True):
        atoms = label.copy()
        atoms.calc = calculator
        assert written.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        energies.append(atoms.get_potential_energy() - label.get_potential_energy())
        forces.append((atoms.get_forces() - label.get_forces()).ravel())
        if atoms.pbc.all():
            stresses.append((atoms.get_stress(voigt=False) - label.get_stress(voigt=False)).ravel())
    for name, differences in {"energy": energies, "forces": np.concatenate(forces), "stress": stresses[0]}.items():
        assert results[name]["mae"] == pytest.approx(np.abs(differences).mean(), rel=1e-6)
        assert results[name]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(differences))), rel=1e-6)
        assert results[name]["n"] == len(differences)
    assert f"{1000 * results['forces']['mae']:.4f}" in out


def test_other_labels_index_and_checkpoint(nequip, run_folder, water, tmp_path):
    results = {}
    for name, arguments in {
        "plain": ["--index", "0"],
        "renamed": ["--index", "0", "--keys", "energy=REF_energy"],
        "last": ["--index", "0", "--checkpoint", "last"],
        "all": ["--batch-atoms", "1"],
    }.items():
        path = tmp_path / f"{name}.json"
        assert nequip("evaluate", run_folder, water, *arguments, "--json", path).code == 0
        results[name] = json.loads(path.read_text())
    assert results["plain"]["n_structures"] == 1
    assert results["all"]["n_structures"] == 3
    # the labels differ by 50 eV, the prediction does not
    assert results["renamed"]["energy"]["mae"] == pytest.approx(results["plain"]["energy"]["mae"] + 50.0, abs=1e-6)
    assert results["last"]["model"]["hash"] != results["plain"]["model"]["hash"]


def test_plots(nequip, run_folder, water, tmp_path):
    assert nequip("evaluate", run_folder, water, "--plots", tmp_path / "plots").code == 0
    assert (tmp_path / "plots" / "forces.png").stat().st_size > 1000


def test_without_labels(nequip, run_folder, tmp_path):
    path = tmp_path / "bare.xyz"
    path.write_text("1\n\nH 0 0 0\n")
    code, out, err = nequip("evaluate", run_folder, path)
    assert code == 0
    assert "no labels" in out
    assert "warning" in err


def test_other_units_of_the_training_file_are_said(nequip, tmp_path, write_model, water):
    units = {
        "length": "Angstrom",
        "energy": "Hartree",
        "forces": "auto",
        "stress": "GPa",
        "stress_sign": "tension_positive",
    }
    path = write_model(tmp_path / "a.nequip.zip", data={"units": units})
    assert "Hartree" in nequip("evaluate", path, water).err


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"bad", "run", "water.extxyz"}


def test_bad_model(nequip, bad_model, water, tmp_path):
    path, words = bad_model
    code, _, err = nequip("evaluate", path, water, "--json", tmp_path / "a.json", "--write", tmp_path / "a.extxyz")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert written(tmp_path) == set()


def test_bad_data(nequip, run_folder, bad_structure, tmp_path):
    path, words = bad_structure
    code, _, err = nequip("evaluate", run_folder, path, "--json", tmp_path / "a.json", "--write", tmp_path / "a.extxyz")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert written(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keys", "energies=REF_energy"], "energies"),
        (["--keys", "energy"], "energy"),
        (["--batch-atoms", "0"], "at least one atom"),
        (["--index", "abc"], "abc"),
        (["--index", "7:"], "no frames"),
        (["--device", "tpu"], "tpu"),
        (["--json", "no/such/folder/out.json"], "no/such/folder"),
    ],
)
def test_bad_options(nequip, run_folder, water, arguments, words):
    code, _, err = nequip("evaluate", run_folder, water, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_file_that_can_not_be_written_is_said_before_the_work(nequip, run_folder, water, monkeypatch):
    monkeypatch.setattr("nequip_core.engines.evaluate.evaluate", lambda *arguments, **options: pytest.fail("worked"))
    code, _, err = nequip("evaluate", run_folder, water, "--json", "no/such/folder/out.json")
    assert code == 2
    assert "Can not write no/such/folder/out.json" in err
