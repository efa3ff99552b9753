"""LAMMPS on a CUDA device against the ASE calculator there, in float64; blocks, processes that share the device.

conftest.py says which LAMMPS that is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from tests.gpu.lammps_on_device import DEVICE, MODELS, OnDevice, Run
from tests.lammps.lammps_support import (
    METAL_PRESSURE,
    Ended,
    assert_close,
    droplet,
    fluid,
    forge,
    setup,
    thermo_rows,
    write_data,
)

pytestmark = pytest.mark.gpu
COLUMNS = "x y z fx fy fz c_energies c_virials[1] c_virials[2] c_virials[3] c_virials[4] c_virials[5] c_virials[6]"
OUTPUT = """
compute energies all pe/atom
compute virials all stress/atom NULL virial
thermo_style custom step pe pxx pyy pzz pxy pxz pyz
thermo_modify format float %.17g
"""
DUMP = f"""
dump 1 all custom {{every}} dump {COLUMNS}
dump_modify 1 sort id format float %.17g
"""
DYNAMICS = "velocity all create 3000 1 loop geom\nfix 1 all nve\ntimestep 0.001\nrun {steps}\n"


def last_frame(folder: Path) -> Any:
    """[atoms, columns] of the dump."""
    return np.loadtxt((folder / "dump").read_text().split("ITEM: ATOMS")[-1].splitlines()[1:], ndmin=2)


def check(ended: Ended, folder: Path, model: OnDevice, atoms: Atoms, *, moving: bool = False) -> None:
    """Energy, forces, virial, and those of each atom, against ASE at the positions that LAMMPS has."""
    assert ended.code == 0, ended.text
    assert f", on {DEVICE}" in ended.text
    frame = last_frame(folder)
    atoms = atoms.copy()
    atoms.positions = frame[:, :3]
    atoms.calc = model.calculator()
    row = thermo_rows(ended.text)[-1]
    volume, order = atoms.get_volume(), [0, 1, 2, 5, 4, 3]
    assert_close(row[1], atoms.get_potential_energy(), 1e-10)
    assert_close(frame[:, 3:6], atoms.get_forces(), 1e-10)
    assert_close(frame[:, 6], atoms.get_potential_energies(), 1e-10)
    stresses = frame[:, 7:] / METAL_PRESSURE
    assert_close(stresses, volume * atoms.calc.results["stresses"][:, order], 1e-10)
    if not moving:  # no kinetic pressure
        assert_close(-row[2:8] / METAL_PRESSURE, atoms.get_stress()[order], 1e-9)


@pytest.mark.parametrize(("system", "ranks"), [("small", 1), ("small", 2), ("vacuum", 2)])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_ase(
    lammps_models: dict[str, OnDevice], run_lammps: Run, tmp_path: Path, name: str, system: str, ranks: int
) -> None:
    """A box of 6 Å, less than the ghosts' distance; a droplet, where one process may have no atoms."""
    atoms = fluid(14, 6.0) if system == "small" else droplet(12)
    text = setup(write_data(tmp_path / "data", atoms), lammps_models[name].compiled)
    check(run_lammps(text + OUTPUT + DUMP.format(every=1) + "run 0\n", ranks), tmp_path, lammps_models[name], atoms)


@pytest.mark.parametrize(
    ("name", "options", "ranks"),
    [("allegro", "", 1), ("allegro", "block 7", 1), ("allegro", "block 7", 2), ("nequip", "", 1), ("nequip", "", 2)],
)
def test_while_atoms_move(
    lammps_models: dict[str, OnDevice], run_lammps: Run, tmp_path: Path, name: str, options: str, ranks: int
) -> None:
    """By more than the skin: lists are made anew; blocks, and processes that share the device."""
    atoms = fluid(60, 9.0, seed=1)
    text = setup(write_data(tmp_path / "data", atoms), lammps_models[name].compiled, options=options)
    ended = run_lammps(text + OUTPUT + DUMP.format(every=60) + DYNAMICS.format(steps=60), ranks)
    check(ended, tmp_path, lammps_models[name], atoms, moving=True)
    assert "(1 in " not in ended.text  # lists
    if options:
        assert " blocks" in ended.text


def test_blocks_that_do_not_fit_are_halved(lammps_models: dict[str, OnDevice], run_lammps: Run, tmp_path: Path) -> None:
    """Torch may take less memory than the device has, which is not seen before it is tried."""
    atoms, allowed = fluid(64_000, 91.0, seed=2), 4e8
    share = allowed / torch.cuda.get_device_properties(0).total_memory
    text = setup(write_data(tmp_path / "data", atoms), lammps_models["allegro"].compiled)
    text += OUTPUT + DUMP.format(every=3) + DYNAMICS.format(steps=3)
    ended = run_lammps(text, PYTORCH_CUDA_ALLOC_CONF=f"per_process_memory_fraction:{share:.6f}")
    check(ended, tmp_path, lammps_models["allegro"], atoms, moving=True)
    assert " blocks" in ended.text


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"capability": "5.0"}, "", "was compiled for GPUs of compute capability 5.0, and cuda:0 has "),
        ({"cuda": "9.2"}, "", "was compiled with CUDA 9.2, and torch has CUDA "),
        ({}, "device cuda:99", "there is no device cuda:99: torch sees "),
        ({}, "device cpu", "was compiled for cuda, and cpu was asked for: compile it with `nequip compile MODEL "),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    lammps_models: dict[str, OnDevice],
    run_lammps: Run,
    tmp_path: Path,
    changes: dict[str, str],
    options: str,
    words: str,
) -> None:
    file = forge(lammps_models["allegro"].compiled, tmp_path / "other.nequip.pt2", **changes)
    text = setup(write_data(tmp_path / "data", fluid(14, 6.0)), file, options=options)
    ended = run_lammps(text + "run 0\n", 2)
    assert ended.code != 0
    assert len(ended.errors) == 1, ended.text
    assert f"pair_style nequip: {file if 'was' in words else ''}" in ended.errors[0]
    assert words in ended.errors[0]
