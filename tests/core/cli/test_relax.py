"""nequip relax."""

from __future__ import annotations

import ase.io
import pytest

from nequip_core.cli.relax import parser
from nequip_core.engines.dynamics import OPTIMIZERS


def test_relax(nequip, run_folder, water, tmp_path):
    trajectory = tmp_path / "out.extxyz"
    code, out, err = nequip("relax", run_folder, water, "--fmax", 0.5, "--trajectory", trajectory, "--device", "cpu")
    assert "checkpoint best, raw weights" in err
    assert code == 0, (out, err)
    assert "converged" in out
    frames = ase.io.read(trajectory, ":")
    assert frames[-1].get_potential_energy() <= frames[0].get_potential_energy()


def test_cell_and_too_few_steps(nequip, run_folder, water, tmp_path):
    trajectory = tmp_path / "out.extxyz"
    arguments = ["--index", 2, "--cell", "--fmax", 1e-9, "--steps", 2, "--optimizer", "fire"]
    code, _, err = nequip("relax", run_folder, water, *arguments, "--trajectory", trajectory)
    assert code == 3
    assert "not converged" in err
    frames = ase.io.read(trajectory, ":")
    assert len(frames) == 3
    assert abs(frames[-1].cell.array - frames[0].cell.array).max() > 0


def test_every_optimizer_can_be_chosen():
    (optimizer,) = [action for action in parser()._actions if action.dest == "optimizer"]
    assert set(optimizer.choices) == set(OPTIMIZERS)


def test_bad_model(nequip, bad_model, water):
    path, words = bad_model
    code, _, err = nequip("relax", path, water)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_bad_structure(nequip, run_folder, bad_structure, tmp_path):
    path, words = bad_structure
    code, _, err = nequip("relax", run_folder, path, "--trajectory", tmp_path / "t.extxyz")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "t.extxyz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--cell"], "periodic"), (["--fmax", "0"], "fmax"), (["--optimizer", "newton"], "newton")],
)
def test_bad_options(nequip, run_folder, water, arguments, words):
    code, _, err = nequip("relax", run_folder, water, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
