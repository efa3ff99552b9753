"""Bad input is one sentence on all processes, and none of them hangs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from lammps_support import Lammps, Model, environment, fluid, forge, mpirun, setup, write_data


def message(text: str) -> str:
    """What LAMMPS in this process says to an input."""
    with Lammps() as lammps, pytest.raises(Exception, match="ERROR") as caught:
        lammps.run(text)
    return str(caught.value).partition("\n")[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", fluid(14, 6.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "openmm"}, ["target openmm", "--target lammps --device cpu"]),
        ({"torch": "2.9.1"}, ["compiled with torch 2.9", "nequip compile MODEL"]),
        ({"device": "cuda", "isa": None}, ["compiled for cuda", "--device cpu"]),
        ({"isa": "aarch64 DEFAULT"}, ["compiled for processors with aarch64 DEFAULT"]),
        ({"kernel_libraries": {"fast-ops": "7.7"}}, ["needs the kernel library fast-ops 7.7", "--kernels reference"]),
        ({"schema": 2}, ["schema 2", "expected nequip-core/compiled, schema 1"]),
        ({"format": "other"}, ["its format is other"]),
    ],
)
def test_files_for_something_else(
    allegro: Model, data: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    file = forge(allegro.compiled, tmp_path / "other.nequip.pt2", **changes)
    said = message(setup(data, file))
    assert said.startswith("ERROR: pair_style nequip: ")
    assert all(word in said for word in [str(file), *words])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("MODEL", "missing.nequip.pt2"), "there is no file missing.nequip.pt2"),
        (("MODEL", "DATA"), "is no compiled model"),
        ((" O H", " O Xx"), "atom type 2 is to be Xx, which is no type of the model"),
        ((" O H", " O"), "a type name of the model, or NULL, for each of the 2 atom types"),
        ((" O H", " O NULL"), "use pair_style hybrid or hybrid/overlay"),
        (("nequip \n", "nequip neighbor fast\n"), "unknown argument 'neighbor fast'"),
        (("nequip \n", "nequip device cuda:0\n"), "was compiled for cpu, and cuda:0 was asked for"),
        (("nequip \n", "nequip device tpu\n"), "there is no device tpu"),
        (("units metal", "units lj"), "units lj are not supported; use units metal or units real"),
        (("units metal", "units electron"), "units electron are not supported"),
        (("run 0", "run_style respa 2 2 pair 2\nrun 0"), "run_style respa is not supported"),
        (("run 0", "compute 1 all nequip charges 1\nrun 0"), "the model has no output charges; it has atomic_energy"),
        (("run 0", "compute 1 all nequip virial 6\nrun 0"), "output virial has length 9, and 6 was asked for"),
        (("run 0", "compute 1 all nequip/atom virial 9 1\nrun 0"), "virial has no row per atom; use compute nequip"),
        (("run 0", "compute 1 all nequip virial\nrun 0"), "expected compute ID all nequip QUANTITY LENGTH"),
        (("pair_coeff", "compute 1 all nequip virial 9\n#"), "pair_coeff * * FILE.nequip.pt2 ... is missing"),
    ],
)
def test_wrong_lines(allegro: Model, data: Path, change: tuple[str, str], words: str) -> None:
    text = setup(data, allegro.compiled) + "run 0\n"
    old, new = (part.replace("MODEL", str(allegro.compiled)).replace("DATA", str(data)) for part in change)
    assert old in text
    assert words in message(text.replace(old, new))


def test_a_cutoff_for_ghosts_that_is_too_small(allegro: Model, nequip: Model, data: Path) -> None:
    for model, line in ((allegro, "comm_modify cutoff 4.5"), (nequip, "comm_modify cutoff 11.5")):
        said = message(setup(data, model.compiled, before="comm_modify cutoff 4.0") + "run 0\n")
        assert f"comm_modify cutoff 4 is too small for {model.compiled}" in said
        assert f"write {line}, or leave the line out" in said


def test_heat_flux_is_refused_where_it_is_wrong(allegro: Model, nequip: Model, data: Path) -> None:
    lines = "compute ke all ke/atom\ncompute pe all pe/atom\ncompute s all {} NULL virial\n"
    lines += "compute flux all heat/flux ke pe s\nthermo_style custom step c_flux[1]\nrun 0\n"
    said = message(setup(data, nequip.compiled) + lines.format("centroid/stress/atom"))
    assert "compute heat/flux is not defined by the per-atom virials of a model with message passing" in said
    said = message(setup(data, allegro.compiled) + lines.format("stress/atom"))
    assert "needs compute centroid/stress/atom in place of stress/atom" in said


def test_a_list_that_lacks_bonded_pairs(allegro: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "full", fluid(14, 6.0), style="full")
    text = setup(data, allegro.compiled, options="neighbor lmplist", atom_style="full", before="bond_style zero")
    assert "write special_bonds lj/coul 1 1 1, or use neighbor core" in message(text + "bond_coeff *\nrun 0\n")


@pytest.mark.parametrize("change", ["file", "cutoff"])
def test_all_processes_end(allegro: Model, data: Path, tmp_path: Path, change: str) -> None:
    text = setup(data, allegro.compiled)
    if change == "file":
        text = text.replace(str(allegro.compiled), "missing.nequip.pt2")
    else:
        text = text.replace("read_data", "comm_modify cutoff 1.0\nread_data")
    ended = mpirun(tmp_path, 2, text + "run 0\n", seconds=120)
    assert ended.code != 0
    assert len(ended.errors) == 1, ended.text
    assert "pair_style nequip: " in ended.errors[0]


def test_all_processes_end_when_one_fails(allegro: Model, data: Path, tmp_path: Path) -> None:
    """The second one finds no core."""
    (tmp_path / "in.lammps").write_text(setup(data, allegro.compiled) + "run 0\n")
    first = ["-np", "1", "lmp", "-in", "in.lammps"]
    # Into a file: mpirun may end before it has passed on what a process has written last.
    second = ["sh", "-c", "exec lmp -in in.lammps > second.txt 2>&1"]
    command = ["mpirun", *first, ":", "-np", "1", "-env", "NEQUIP_LAMMPS_CORE", "nowhere", *second]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    said = (tmp_path / "second.txt").read_text()
    assert "NEQUIP_LAMMPS_CORE names nowhere, which can not be read" in said
