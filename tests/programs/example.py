"""The C++ example: how it is built and called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from nequip_core.models.base import ModelInfo

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"


def build(folder: Path) -> Path:
    """The program, built in a folder."""
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["cmake", "-S", str(EXAMPLE), "-B", str(folder), prefix], ["cmake", "--build", str(folder)]):
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr
    return folder / "energy"


def energy_and_forces(
    program: Path, file: Path, info: ModelInfo, atoms: Atoms, device: str = "cpu", **environment: str
) -> tuple[float, Any]:
    """Of a molecule of which no pair is between its own and the largest cut-off: the example knows of one.

    Args:
        program: see `build`.
        file: compiled for the device.
        info: of its model.
        atoms: of elements of which the model has one type each.
        device: see the example.
        environment: besides that of this process.
    """
    lines = [
        f"{info.elements.index(symbol)} {x!r} {y!r} {z!r}"
        for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions.tolist(), strict=True)
    ]
    ran = subprocess.run(
        [str(program), str(file), repr(info.cutoff), device],
        input="\n".join(lines),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    energy, *forces = [[float(word) for word in line.split()] for line in ran.stdout.splitlines()]
    return energy[0], np.array(forces)
