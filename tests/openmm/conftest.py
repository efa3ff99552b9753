"""The models of all tests in OpenMM, made once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from nequip_core.cli.main import main
from nequip_core.engines.ase import NequIPCalculator

sys.path.insert(0, str(Path(__file__).parent))  # for openmm_support

from openmm_support import REAL, write_model

collect_ignore = [] if REAL else ["test_torchforce.py"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One for all workers."""
    base = tmp_path_factory.getbasetemp()
    found = (base if worker_id == "master" else base.parent) / "openmm"
    found.mkdir(exist_ok=True)
    return found


@pytest.fixture(scope="session")
def package(folder: Path) -> Path:
    """A small NequIP model of H, C, O in float64."""
    path = folder / "tiny.nequip.zip"
    with FileLock(folder / "package.lock"):
        return path if path.exists() else write_model(path)


@pytest.fixture(scope="session")
def model(folder: Path, package: Path) -> Path:
    """The same model, compiled; once, whatever the number of workers."""
    path = folder / "tiny.nequip.pt2"
    with FileLock(folder / "model.lock"):
        if not path.exists():
            assert main(["compile", str(package), str(path), "--target", "openmm"]) == 0
    return path


@pytest.fixture(scope="session")
def calculator(package: Path) -> Callable[[], NequIPCalculator]:
    """A new ASE calculator of the same weights, not compiled."""
    return lambda: NequIPCalculator.from_file(package, device="cpu", skin=0.0)
