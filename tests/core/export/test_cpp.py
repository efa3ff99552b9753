"""The C++ example: a compiled model without Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from tests.programs.example import build, energy_and_forces

from nequip_core.engines.ase import NequIPCalculator


def test_the_example_gives_pythons_numbers(compiled: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    program = build(tmp_path)
    package, out = compiled("allegro")
    calculator = NequIPCalculator.from_file(package, device="cpu")
    info = calculator.loaded.info
    assert {cutoff for row in info.pair_cutoffs for cutoff in row} == {info.cutoff}  # the example knows of one
    for atoms in (molecule("H2O"), molecule("H2O2"), Atoms("O"), Atoms("H2", [[0, 0, 0], [0, 0, 50]])):
        atoms.calc = calculator
        energy, forces = energy_and_forces(program, out, info, atoms)
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-12)
