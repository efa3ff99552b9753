"""`nequip evaluate` in two processes of torchrun: the files of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_core.cli.main import main

SOURCE = Path(__file__).parents[1] / "golden" / "published" / "nequip-0.16-checkpoint" / "last.ckpt"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def write_frames(path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for n in range(13):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=n)
        if n % 2:
            atoms.set_cell([5, 5, 5])
            atoms.pbc = True
        atoms.calc = SinglePointCalculator(atoms, energy=-14.0, forces=rng.normal(size=(3, 3)))
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def test_two_processes_write_what_one_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = tmp_path / "a.nequip.zip", tmp_path / "data.xyz"
    write_frames(data)
    assert main(["convert", str(SOURCE), str(model)]) == 0
    capfd.readouterr()
    results = []
    for name in ("one", "two"):
        files = [tmp_path / f"{name}.json", tmp_path / f"{name}.extxyz"]
        words = ["evaluate", model, data, "--device", "cpu", "--batch-atoms", "7"]
        words += ["--json", files[0], "--write", files[1]]
        words = list(map(str, words))
        code = main(words) if name == "one" else subprocess.run([*TORCHRUN, "-m", "nequip_core", *words]).returncode
        out, err = capfd.readouterr()
        assert code == 0, err
        assert (out + err).count("model:") == 1
        assert out.count("13 structures") == 1
        results.append((json.loads(files[0].read_text()) | {"time_s": 0.0}, files[1].read_text()))
    assert results[0] == results[1]


@pytest.mark.distributed
def test_bad_input_ends_both(tmp_path: Path) -> None:
    model = tmp_path / "a.nequip.zip"
    assert main(["convert", str(SOURCE), str(model)]) == 0
    command = [*TORCHRUN, "-m", "nequip_core", "evaluate", str(model), "nothing.xyz", "--device", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode != 0
    assert ended.stderr.count("No such file: nothing.xyz") == 1
