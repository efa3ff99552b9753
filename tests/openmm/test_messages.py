"""What can not be used is said in one sentence, as OpenMMException, before the first step."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import openmm
import pytest
import torch
from ase import Atoms
from openmm_support import context_of, energy_forces, hosted, ice, system_of, topology_of, waters

import nequip_openmm
from nequip_core.errors import NequipError
from nequip_openmm import check
from nequip_openmm.torchforce import read_spec, usage


def test_errors_are_of_both_sides(model):
    with pytest.raises(openmm.OpenMMException) as raised:
        nequip_openmm.python_force(model, ["Xe"], periodic=False)
    assert isinstance(raised.value, NequipError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"atoms_of": ["Xe", "H"], "periodic": False}, "The system holds Xe, which the model does not know. Its types"),
        ({"atoms_of": ["Q"], "periodic": False}, "Q is no element"),
        ({"atoms_of": "OHH", "periodic": False}, "Expected a topology or a list of elements"),
        ({"atoms_of": ["H"]}, "does not say whether there is a box"),
        ({"atoms_of": ["H"], "periodic": False, "atoms": [1]}, "the system has 1, numbered from 0"),
        ({"atoms_of": ["H"], "periodic": False, "atoms": []}, "No atom is left for the model"),
        ({"atoms_of": ["H"], "periodic": False, "atoms": [0, 0]}, "named twice"),
        ({"atoms_of": ["H"], "periodic": False, "skin": -1.0}, "skin must be 0 Å or more"),
        ({"atoms_of": ["H"], "periodic": False, "lambda_name": "a b"}, "can not name a global parameter"),
        ({"atoms_of": ["H"], "periodic": False, "types": ["O"]}, "'H' can not be 'O'"),
        ({"atoms_of": ["H"], "periodic": False, "types": ["H", "H"]}, "types names 2 atoms; the model sees 1"),
        ({"atoms_of": ["H"], "periodic": False, "device": "cuda:7"}, "There is no device 'cuda:7'"),
        ({"atoms_of": ["H"], "periodic": False, "device": "tpu"}, "There is no device 'tpu'"),
    ],
)
def test_bad_arguments(arguments, message, model):
    with pytest.raises(openmm.OpenMMException, match=re.escape(message)):
        nequip_openmm.python_force(model, **arguments)


def test_a_periodic_model_without_a_box(model):
    topology = topology_of(Atoms("OHH", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]]))
    with pytest.raises(openmm.OpenMMException, match="the topology has no periodic box"):
        nequip_openmm.create_system(topology, model, periodic=True)


def test_the_line_about_the_box_is_missing(model, tmp_path):
    atoms = ice()
    path = nequip_openmm.export_torchforce(model, topology_of(atoms), tmp_path / "model.pt")
    with pytest.raises(openmm.OpenMMException, match=r"force\.setUsesPeriodicBoundaryConditions\(True\)"):
        energy_forces(context_of(system_of(atoms, hosted(path, periodic=False)), atoms))
    force = nequip_openmm.python_force(model, topology_of(atoms))
    force.setUsesPeriodicBoundaryConditions(False)
    with pytest.raises(openmm.OpenMMException, match=r"force\.setUsesPeriodicBoundaryConditions\(True\)"):
        energy_forces(context_of(system_of(atoms, force), atoms))


def test_the_line_about_the_parameter_is_missing(model, tmp_path):
    atoms = ice()
    path = nequip_openmm.export_torchforce(model, topology_of(atoms), tmp_path / "model.pt", lambda_name="scale")
    with pytest.raises(openmm.OpenMMException, match=r"force\.addGlobalParameter\('scale', 1\.0\)"):
        energy_forces(context_of(system_of(atoms, hosted(path)), atoms))


def test_a_box_for_a_force_without_one_is_no_error(model, tmp_path, calculator):
    atoms = Atoms("OHH", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]])
    path = nequip_openmm.export_torchforce(model, topology_of(atoms), tmp_path / "model.pt")
    boxed = Atoms(atoms.symbols, atoms.positions, cell=[1.5, 1.5, 1.5], pbc=True)
    atoms.calc = calculator()
    energy, _ = energy_forces(context_of(system_of(boxed, hosted(path, periodic=True)), boxed))
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-9)


def test_a_system_of_another_size(model, tmp_path):
    path = nequip_openmm.export_torchforce(model, topology_of(ice()), tmp_path / "model.pt")
    atoms = waters()
    with pytest.raises(openmm.OpenMMException, match="written for 6 particles; the system has 24"):
        energy_forces(context_of(system_of(atoms, hosted(path)), atoms))


FRESH = """
import sys, openmm, pathlib
force = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
system = openmm.System()
for _ in range(6):
    system.addParticle(1.0)
system.setDefaultPeriodicBoxVectors([2, 0, 0], [0, 2, 0], [0, 0, 2])
system.addForce(force)
context = openmm.Context(system, openmm.VerletIntegrator(1e-4), openmm.Platform.getPlatform("Reference"))
context.setPositions([[0.1 * n, 0, 0] for n in range(6)])
for change in sys.argv[2:]:
    exec(change)
    try:
        context.getIntegrator().step(1)
    except openmm.OpenMMException as error:
        print(error, context.getStepCount(), sep="|")
"""


def in_a_fresh_process(force: openmm.Force, folder: Path, *changes: str, **environment: str) -> list[list[str]]:
    """What a force of six atoms says after each change, and after how many steps, where it is read from XML."""
    xml = folder / "force.xml"
    xml.write_text(openmm.XmlSerializer.serialize(force))
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(xml), *changes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


def test_a_model_that_is_gone_or_was_edited(model, tmp_path):
    copy = tmp_path / model.name
    shutil.copy(model, copy)
    force = nequip_openmm.python_force(copy, topology_of(ice()), embed=False)
    path = f"pathlib.Path({str(copy)!r})"
    said = in_a_fresh_process(
        force,
        tmp_path,
        f"good = {path}.read_bytes(); {path}.write_bytes(good + b' ')",
        f"{path}.unlink()",
        f"{path}.write_bytes(good)",
    )
    assert len(said) == 2
    assert "has changed since this force was written, and the force holds no copy" in said[0][0]
    assert f"The model {copy} is gone" in said[1][0]
    assert [steps for _, steps in said] == ["0", "0"]


def changed(model: Path, path: Path, **metadata: str) -> Path:
    """The same file, which says something else of itself."""
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("_metadata.json"):
                outer = json.loads(content)
                inner = json.loads(outer["nequip"])
                inner.update(metadata)
                content = json.dumps({**outer, "nequip": json.dumps(inner)}).encode()
            new.writestr(name, content)
    return path


def test_a_model_compiled_for_another_torch(model, tmp_path):
    other = changed(model, tmp_path / "other.nequip.pt2", torch="2.9.1")
    with pytest.raises(openmm.OpenMMException, match=r"compiled for torch 2\.9\.1, but here is "):
        nequip_openmm.python_force(other, topology_of(ice()))


def test_a_model_compiled_for_a_device_that_is_not_there(model, tmp_path):
    other = changed(model, tmp_path / "other.nequip.pt2", device="cuda", capability="9.0", cuda="13.0")
    with pytest.raises(openmm.OpenMMException, match=r"There is no device 'cuda'|compiled for"):
        nequip_openmm.python_force(other, topology_of(ice()))
    with pytest.raises(openmm.OpenMMException, match="was compiled for device cuda, but here is cpu"):
        nequip_openmm.python_force(other, topology_of(ice()), device="cpu")


def test_files_that_are_none(model, tmp_path):
    with pytest.raises(openmm.OpenMMException, match="is no file"):
        nequip_openmm.torch_force(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no module")
    with pytest.raises(openmm.OpenMMException, match="was not written by `nequip openmm export`"):
        nequip_openmm.torch_force(tmp_path / "text.pt")
    with pytest.raises(openmm.OpenMMException, match="does not exist"):
        nequip_openmm.python_force(tmp_path / "none.nequip.pt2", topology_of(ice()))
    with pytest.raises(openmm.OpenMMException, match="Can not write"):
        nequip_openmm.export_torchforce(model, topology_of(ice()), tmp_path / "no" / "model.pt")


def test_files_of_another_version(model, tmp_path):
    spec = read_spec(nequip_openmm.export_torchforce(model, topology_of(ice()), tmp_path / "model.pt"))
    text = json.dumps({**json.loads(spec.to_json()), "schema": 99})
    with pytest.raises(openmm.OpenMMException, match="another version of nequip-openmm"):
        type(spec).from_json(text)


def test_the_plugin_is_missing(monkeypatch, model):
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    check.plugin_verdict.cache_clear()
    with pytest.raises(openmm.OpenMMException, match=r"openmm-torch is not installed.*backend='python'"):
        nequip_openmm.create_system(topology_of(ice()), model, "torchforce")
    check.plugin_verdict.cache_clear()


def test_the_plugin_does_not_fit(monkeypatch, tmp_path):
    """As a plugin that was built for another torch: imported, and gone at the first force."""
    (tmp_path / "openmmtorch.py").write_text(
        "import os\nclass TorchForce:\n    def __init__(self, module): os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: object())
    check.plugin_verdict.cache_clear()
    usable, sentence = check.plugin_verdict()
    check.plugin_verdict.cache_clear()
    assert not usable
    assert f"was built for another torch than {torch.__version__}" in sentence


def test_a_backend_that_is_none(model):
    with pytest.raises(openmm.OpenMMException, match=r"There is no backend 'cuda'\. Expected one of auto, python"):
        nequip_openmm.create_system(topology_of(ice()), model, "cuda")


def test_the_lines_that_go_with_a_file(model, tmp_path):
    path = tmp_path / "model.pt"
    spec = read_spec(nequip_openmm.export_torchforce(model, topology_of(ice()), path, lambda_name="scale"))
    assert usage(spec, path).splitlines() == [
        "import nequip_openmm",
        "from openmmtorch import TorchForce",
        f'force = TorchForce("{path}")',
        "force.setOutputsForces(True)",
        "force.setUsesPeriodicBoundaryConditions(True)",
        'force.addGlobalParameter("scale", 1.0)',
        "system.addForce(force)",
    ]
    only = read_spec(nequip_openmm.export_torchforce(model, ["H"], path, periodic=False, energy_only=True))
    assert "set" not in usage(only, path)


def test_no_temporary_folder_is_left(model, tmp_path):
    """Neither the unpacked model nor the copy of an embedded one."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    force = nequip_openmm.python_force(model, topology_of(ice()))
    assert in_a_fresh_process(force, tmp_path, "pass", TMPDIR=str(temporary)) == []
    assert list(temporary.iterdir()) == []
