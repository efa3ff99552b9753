"""A model's files and a data file for the commands that take them, and a way to run a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_core.cli.main import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def nequip(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``nequip("info", path, ...)``: the command line in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def run_folder(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    """A folder as a training run leaves it, with two checkpoints of different weights."""
    folder = tmp_path / "run"
    write_model(folder / "checkpoints" / "best.ckpt")
    write_model(folder / "checkpoints" / "last.ckpt", seed=1)
    return folder


@pytest.fixture
def water(tmp_path: Path) -> Path:
    """Three frames: a water molecule, another, and ice of two molecules; a second energy label with another name."""
    rng = np.random.default_rng(0)
    molecule = Atoms("OHH", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    ice = molecule + Atoms("OHH", positions=molecule.positions + np.array([2.2, 2.0, 2.1]))
    ice.set_cell([[4.4, 0, 0], [0.7, 4.3, 0], [0.2, -0.6, 4.1]])
    ice.pbc = True
    frames = [molecule.copy(), molecule.copy(), ice]
    for n, frame in enumerate(frames):
        frame.rattle(0.02, seed=n)
        results = {"energy": -450.0 * len(frame) / 3, "forces": rng.normal(size=(len(frame), 3))}
        if frame.pbc.all():
            results["stress"] = rng.normal(scale=0.01, size=6)
        frame.calc = SinglePointCalculator(frame, **results)
        frame.info["REF_energy"] = -400.0
    path = tmp_path / "water.extxyz"
    ase.io.write(path, frames)
    return path


def bad_models(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no model of ours: path and what the message must say."""
    import zipfile

    (folder / "empty.ckpt").write_bytes(b"")
    content = good.read_bytes()
    (folder / "cut.ckpt").write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(folder / "published.nequip.zip", "w") as archive:
        archive.writestr("model/.data/version", "6")
        archive.writestr("model/model.pkl", b"")
    (folder / "text.ckpt").write_text("hello")
    return {
        "missing": (folder / "none.ckpt", "none.ckpt"),
        "folder": (folder, "checkpoints/best.ckpt"),
        "empty": (folder / "empty.ckpt", "is empty"),
        "truncated": (folder / "cut.ckpt", "truncated"),
        "published": (folder / "published.nequip.zip", "published nequip package"),
        "text": (folder / "text.ckpt", "is no checkpoint"),
    }


@pytest.fixture(params=["missing", "folder", "empty", "truncated", "published", "text"])
def bad_model(request: pytest.FixtureRequest, tmp_path: Path, run_folder: Path) -> tuple[Path, str]:
    """A path that is no model, and words that the message must hold."""
    folder = tmp_path / "bad"
    folder.mkdir()
    return bad_models(folder, run_folder / "checkpoints" / "best.ckpt")[request.param]


def bad_structures(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that hold no structure for the model: path and what the message must say."""
    (folder / "empty.xyz").write_text("")
    (folder / "cut.xyz").write_text("3\n\nO 0 0 0\nH 1 0 0\n")
    ase.io.write(folder / "copper.extxyz", Atoms("Cu", positions=[[0, 0, 0]]))
    ase.io.write(folder / "overlap.extxyz", Atoms("OHH", positions=[[0, 0, 0], [1, 0, 0], [1, 0, 0]]))
    left = Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]], cell=[[0, 5, 0], [5, 0, 0], [0, 0, 5]], pbc=True)
    ase.io.write(folder / "left.extxyz", left)
    (folder / "nan.xyz").write_text("2\n\nO 0 0 nan\nH 1 0 0\n")
    return {
        "missing": (folder / "none.xyz", "none.xyz"),
        "empty": (folder / "empty.xyz", "empty.xyz"),
        "truncated": (folder / "cut.xyz", "cut.xyz: frame 0"),
        "unknown element": (folder / "copper.extxyz", "Cu"),
        "overlap": (folder / "overlap.extxyz", "apart"),
        "volume": (folder / "left.extxyz", "left.extxyz frame 0"),
        "nan": (folder / "nan.xyz", "nan.xyz frame 0"),
    }


@pytest.fixture(params=["missing", "empty", "truncated", "unknown element", "overlap", "volume", "nan"])
def bad_structure(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A path that holds no usable structure, and words that the message must hold."""
    folder = tmp_path / "bad"
    folder.mkdir()
    return bad_structures(folder)[request.param]
