"""``nequip openmm export|run|check``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from openmm import app, unit
from openmm_support import context_of, energy_forces, hosted, ice, system_of, topology_of, waters

import nequip_openmm
from nequip_core.cli.main import main
from nequip_openmm_plugin.cli import numbers


@pytest.fixture
def water_box(tmp_path: Path) -> Path:
    atoms = waters()
    path = tmp_path / "water.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(topology_of(atoms), atoms.positions / 10 * unit.nanometer, file)
    return path


def test_export_writes_a_file_and_prints_its_lines(model, water_box, tmp_path, capsys):
    out = tmp_path / "model.pt"
    assert main(["openmm", "export", str(model), str(water_box), str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[2] == f'force = TorchForce("{out}")'
    atoms = waters()
    expected = nequip_openmm.python_force(model, topology_of(atoms))
    wanted = energy_forces(context_of(system_of(atoms, expected), atoms))
    assert energy_forces(context_of(system_of(atoms, hosted(out)), atoms))[0] == pytest.approx(wanted[0], rel=1e-12)


def test_export_of_a_subset_that_is_scaled_and_not_embedded(model, water_box, tmp_path, capsys):
    out = tmp_path / "model.pt"
    command = ["openmm", "export", str(model), str(water_box), str(out), "--atoms", "0-2,9", "--lambda", "scale"]
    assert main([*command, "--no-embed", "--no-periodic"]) == 0
    assert 'force.addGlobalParameter("scale", 1.0)' in capsys.readouterr().out
    assert out.stat().st_size < 20_000
    atoms = waters()
    force = hosted(out, parameters=("scale",))
    _, forces = energy_forces(context_of(system_of(atoms, force), atoms))
    assert np.abs(forces[[0, 1, 2, 9]]).min() >= 0
    assert not forces[[3, 4, 5, 6, 7, 8, *range(10, 24)]].any()


def test_export_of_a_package_compiles_it_once(package, water_box, tmp_path, capfd, monkeypatch, model):
    monkeypatch.setenv("NEQUIP_CACHE_DIR", str(tmp_path / "cache"))

    def compile_model(eager, target, path, registry, *, say):
        assert target.name == "openmm"
        path.write_bytes(model.read_bytes())

    monkeypatch.setattr(nequip_openmm.model_file, "compile_model", compile_model)
    for times in (1, 0):
        assert main(["openmm", "export", str(package), str(water_box), str(tmp_path / "model.pt")]) == 0
        assert capfd.readouterr().err.count("for OpenMM into") == times


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_run_writes_a_trajectory_and_a_table_and_prints_the_speed(ensemble, model, water_box, tmp_path, capsys):
    dcd, log = tmp_path / "md.dcd", tmp_path / "md.csv"
    command = ["openmm", "run", str(model), str(water_box), "--steps", "12", "--interval", "5", "--platform", "CPU"]
    outputs = ["--trajectory", str(dcd), "--log", str(log), "--timestep", "0.1", "--minimize", "3"]
    assert main([*command, *outputs, "--ensemble", ensemble]) == 0
    assert re.search(r"^12 steps in .* s: [\d.e+-]+ ns/day$", capsys.readouterr().out, re.M)
    rows = list(csv.DictReader(log.read_text().removeprefix("#").splitlines()))
    assert [row["Step"] for row in rows] == ["5", "10"]
    assert float(rows[0]["Box Volume (nm^3)"]) == pytest.approx(0.512, rel=0.2)
    assert dcd.stat().st_size > 2 * 24 * 3 * 4


def test_the_same_seed_gives_the_same_run(model, water_box, tmp_path):
    logs = []
    for number in range(2):
        logs.append(tmp_path / f"{number}.csv")
        command = ["openmm", "run", str(model), str(water_box), "--steps", "10", "--interval", "5"]
        assert main([*command, "--platform", "Reference", "--timestep", "0.1", "--log", str(logs[-1])]) == 0
    first, second = ([row[:4] for row in csv.reader(log.read_text().splitlines())] for log in logs)
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--platform", "Quantum"], "OpenMM has no platform 'Quantum' here. There are Reference, CPU"),
        (["--timestep", "0"], "timestep must be above 0 fs"),
        (["--types", "H=O"], "'H' can not be 'O'"),
        (["--trajectory", "no/such/folder/x.dcd"], "Can not write no/such/folder/x.dcd"),
        (["--device", "cuda:9"], "There is no device 'cuda:9'"),
    ],
)
def test_run_with_bad_input(arguments, message, model, water_box, capsys):
    assert main(["openmm", "run", str(model), str(water_box), "--steps", "1", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_systems_that_can_not_be_read(model, tmp_path, capsys):
    (tmp_path / "bad.pdb").write_text("ATOM      1  O   HOH A   1      xx.xxx   0.000   0.000\nEND\n")
    (tmp_path / "empty.pdb").write_text("END\n")
    for name, message in (
        ("none.pdb", "There is no file"),
        ("bad.pdb", "can not be read"),
        ("empty.pdb", "can not be read"),
        ("x.gro", "Expected one of .pdb, .cif"),
    ):
        assert main(["openmm", "run", str(model), str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_a_barostat_without_a_box(model, tmp_path, capsys):
    atoms = ice()
    atoms.pbc = False
    path = tmp_path / "open.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(topology_of(atoms), atoms.positions / 10 * unit.nanometer, file)
    assert main(["openmm", "run", str(model), str(path), "--ensemble", "npt"]) == 2
    assert "npt needs a periodic box" in capsys.readouterr().err


def test_check(model, tmp_path, capsys):
    assert main(["openmm", "check"]) == 0
    assert "yes python: PythonForce works on Reference, CPU" in capsys.readouterr().out
    path = nequip_openmm.export_torchforce(model, topology_of(ice()), tmp_path / "model.pt")
    assert main(["openmm", "check", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"]["python"]["usable"]
    assert report["file"]["particles"] == 6
    assert "force.setOutputsForces(True)" in report["usage"]


def test_numbers():
    assert numbers("0-3,9,7") == [0, 1, 2, 3, 9, 7]
    for text in ("", "a", "1-", "-1", "1,,2"):
        with pytest.raises(Exception, match="no list of numbers"):
            numbers(text)
