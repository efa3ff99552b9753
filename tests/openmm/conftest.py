"""The models of all tests in OpenMM, made once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nequip_core.engines.ase import NequIPCalculator

sys.path.insert(0, str(Path(__file__).parent))  # for openmm_support

from openmm_support import write_model


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.nequip.zip")


@pytest.fixture(scope="session")
def model(package: Path) -> Path:
    return package


@pytest.fixture(scope="session")
def calculator(package: Path) -> Callable[[], NequIPCalculator]:
    """A new ASE calculator of the same weights, not compiled."""
    return lambda: NequIPCalculator.from_file(package, device="cpu", skin=0.0)
