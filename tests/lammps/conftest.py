"""The plugin and the models of all tests in LAMMPS, made once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from nequip_core.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))  # for lammps_support

from lammps_support import KEYS, Ended, Model, environment, mpirun, write_model

FIRST_USE = """
units metal
region box block 0 1 0 1 0 1
create_box 2 box
pair_style nequip
pair_coeff * * {model} O H
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One for all workers."""
    base = tmp_path_factory.getbasetemp()
    found = (base if worker_id == "master" else base.parent) / "lammps"
    found.mkdir(exist_ok=True)
    return found


@pytest.fixture(scope="session")
def models(folder: Path) -> Callable[..., Model]:
    """``(name, **keys)``: a model of `KEYS`, compiled once, whatever the number of workers."""

    def make(name: str, **keys: object) -> Model:
        title = "_".join([name, *(f"{key}{value}" for key, value in keys.items())])
        made = Model(folder / f"{title}.nequip.zip", folder / f"{title}.nequip.pt2")
        with FileLock(folder / f"{title}.lock"):
            if not made.compiled.exists():
                write_model(made.package, KEYS[name] | keys)
                assert main(["compile", str(made.package), str(made.compiled), "--target", "lammps"]) == 0
        return made

    return make


@pytest.fixture(scope="session")
def allegro(models: Callable[..., Model]) -> Model:
    """A strictly local model."""
    return models("allegro")


@pytest.fixture(scope="session")
def nequip(models: Callable[..., Model]) -> Model:
    """A model with three layers of message passing."""
    return models("nequip")


@pytest.fixture(scope="session", autouse=True)
def plugin(folder: Path) -> Iterator[Path]:
    """The cache folder of the plugin, which all of this session's LAMMPS processes share."""
    cache = folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEQUIP_CACHE_DIR", str(cache))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PATH", environment()["PATH"])
        yield cache


@pytest.fixture(scope="session")
def first_use(folder: Path, plugin: Path, allegro: Model) -> Ended:
    """Eight processes start at once where nothing is compiled yet: how that went."""
    said = folder / "first_use"
    with FileLock(folder / "first_use.lock"):
        if not said.exists():
            assert not (plugin / "lammps").exists()
            ended = mpirun(folder, 8, FIRST_USE.format(model=allegro.compiled))
            said.write_text(f"{ended.code}\n{ended.text}")
    code, _, text = said.read_text().partition("\n")
    return Ended(int(code), text)


@pytest.fixture(autouse=True)
def _compiled(first_use: Ended) -> None:
    """The plugin is there before any test needs it."""


@pytest.fixture
def no_cache(folder: Path, tmp_path: Path) -> Path:
    """An empty cache folder."""
    empty = tmp_path / "empty"
    shutil.rmtree(empty, ignore_errors=True)
    return empty
