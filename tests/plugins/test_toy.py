"""A plugin in a wheel of its own: installed, listed, trained, evaluated and run, with no line of core changed."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from nequip_core.plugins.manager import KINDS

SOURCE = Path(__file__).parent / "nequip-toy"
NEQUIP = Path(sysconfig.get_path("scripts")) / "nequip"
NUM_FRAMES = 12

CONFIG = """
defaults: [base, {model: toy_fine}, _self_]
data: {path: frames.toy, split: {train: 8, val: 4}, neighbor_list: toy}
model: {cutoff: 3.0, atomic_energies: {H: -1.0, O: -3.0}}
training:
  loss: {forces: {function: toy_log_cosh}}
  optimizer: {lr: 0.02}
trainer: {accelerator: cpu, max_epochs: 30, enable_progress_bar: false}
run: {dir: run}
loggers: [csv]
"""

SIMULATE = """
import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from nequip_core.engines.ase import NequIPCalculator

atoms = Atoms("HOH", [[0.9, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.3, 0.9, 0.0]])
atoms.calc = NequIPCalculator.from_file("run", device="cpu")
dynamics = VelocityVerlet(atoms, timestep=0.2 * units.fs)
energies = [atoms.get_total_energy()]
for _ in range(20):
    dynamics.run(1)
    energies.append(atoms.get_total_energy())
assert np.ptp(energies) < 1e-2, energies
assert abs(atoms.get_forces().sum(axis=0)).max() < 1e-5
far = Atoms("OH", [[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]], calculator=atoms.calc)
assert abs(far.get_potential_energy() + 4.0) < 1e-6
"""

CONFORMANCE = """
from nequip_core.testing.conformance import ModelConformance

class TestToy(ModelConformance):
    model = "toy"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which Python finds the installed wheel of the toy."""
    folder = tmp_path_factory.mktemp("toy")
    # A copy: a build writes into its source.
    shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    install = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *install, "--target", folder / "site", folder / "source"], check=True
    )
    return os.environ | {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, with frames of a bent molecule on springs."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    rest = np.array([[0.9, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.3, 0.9, 0.0]])
    molecules = []
    for _ in range(NUM_FRAMES):
        positions = rest + rng.normal(scale=0.05, size=(3, 3))
        energy, forces = -5.0, np.zeros((3, 3))
        for i, j in ((0, 1), (1, 2), (0, 2)):
            bond = positions[j] - positions[i]
            length = math.dist(positions[i], positions[j])
            stretch = length - math.dist(rest[i], rest[j])
            energy += 5.0 * stretch**2
            forces[i] += 10.0 * stretch * bond / length
            forces[j] -= 10.0 * stretch * bond / length
        rows = [
            " ".join([symbol, *map(str, [*position, *force])])
            for symbol, position, force in zip("HOH", positions, forces, strict=True)
        ]
        molecules.append("\n".join([str(energy), *rows]))
    (folder / "frames.toy").write_text("\n\n".join(molecules) + "\n")
    (folder / "toy.yaml").write_text(CONFIG)
    return folder


def nequip(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [NEQUIP, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_listed_with_one_record_of_every_hook(environment, folder):
    plugins = json.loads(nequip(environment, folder, "plugins", "--json"))["plugins"]
    (toy,) = [plugin for plugin in plugins if plugin["name"] == "toy"]
    assert (toy["distribution"], toy["version"], toy["requires"]) == ("nequip-toy", "0.1.0", "<1,>=0.1")
    assert list(toy["records"]) == [kind.attribute for kind in KINDS]
    assert all(len(names) == 1 for names in toy["records"].values()), toy["records"]


def test_can_be_left_out(environment, folder):
    listed = json.loads(nequip(environment | {"NEQUIP_DISABLE_PLUGINS": "toy"}, folder, "plugins", "--json"))
    assert listed["disabled"] == ["toy"]
    assert "toy" not in [plugin["name"] for plugin in listed["plugins"]]


def test_its_command_is_one_of_nequips(environment, folder):
    assert "toy-hello" in nequip(environment, folder, "--help")
    assert nequip(environment, folder, "toy-hello", "atom") == "Hello, atom.\n"


def test_is_trained_evaluated_and_run_in_ase(environment, folder):
    nequip(environment, folder, "train", "toy.yaml", "seed=1")
    run = json.loads((folder / "run" / "run.json").read_text())
    assert run["state"] == "finished"
    assert "nequip-toy" in json.dumps(run)

    nequip(environment, folder, "evaluate", "run", "frames.toy", "--json", "errors.json")
    errors = json.loads((folder / "errors.json").read_text())
    assert errors["n_structures"] == NUM_FRAMES
    # 0.38 eV/Å after one epoch, 0.14 after twenty.
    assert errors["forces"]["mae"] < 0.2

    subprocess.run([sys.executable, "-c", SIMULATE], env=environment, cwd=folder, check=True)


def test_obeys_the_laws_of_models(environment, tmp_path):
    (tmp_path / "test_conformance.py").write_text(CONFORMANCE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_conformance.py"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
