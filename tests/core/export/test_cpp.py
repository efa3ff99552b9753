"""The C++ example: a compiled model without Python."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nequip_core.engines.ase import NequIPCalculator

EXAMPLE = Path(__file__).parents[3] / "examples" / "cpp"


def test_the_example_gives_pythons_numbers(compiled: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["cmake", "-S", str(EXAMPLE), "-B", str(tmp_path), prefix], ["cmake", "--build", str(tmp_path)]):
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr
    package, out = compiled("allegro")
    calculator = NequIPCalculator.from_file(package, device="cpu")
    info = calculator.loaded.info
    assert {cutoff for row in info.pair_cutoffs for cutoff in row} == {info.cutoff}  # the example knows of one
    for atoms in (molecule("H2O"), molecule("H2O2"), Atoms("O"), Atoms("H2", [[0, 0, 0], [0, 0, 50]])):
        atoms.calc = calculator
        lines = [
            f"{info.elements.index(symbol)} {x!r} {y!r} {z!r}"
            for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions.tolist(), strict=True)
        ]
        ran = subprocess.run(
            [str(tmp_path / "energy"), str(out), repr(info.cutoff)],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        energy, *forces = [[float(word) for word in line.split()] for line in ran.stdout.splitlines()]
        assert energy[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-12)
