"""What many tests of the core use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from nequip_core.cli.main import main
from nequip_core.export.package import Members, Provenance, manifest, write_package
from nequip_core.graph import Graph, from_structure
from nequip_core.models.base import EnergyModel
from nequip_core.models.build import build_model, model_info
from nequip_core.models.nequip import NequIPConfig
from nequip_core.neighbors import make_matscipy
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.structure import Structure, TypeMap


def _random_structure(rng: np.random.Generator, atoms: int = 6, *, periodic: bool = True) -> Structure:
    cell = np.diag(rng.uniform(4, 6, 3)) + rng.normal(scale=0.5, size=(3, 3))
    positions = np.zeros((0, 3))
    while len(positions) < atoms:
        trial = rng.uniform(size=3) @ cell
        if len(make_matscipy(0.9)(np.vstack([positions, trial]), cell, np.full(3, True)).centre) == 0:
            positions = np.vstack([positions, trial])
    numbers = rng.choice([1, 8], size=atoms)
    pbc = np.full(3, periodic)
    return Structure(positions=positions, numbers=numbers, cell=cell * periodic, pbc=pbc, source="random:0")


@pytest.fixture
def random_structure() -> Callable[..., Structure]:
    """``(rng, atoms=6, *, periodic=True)``: H and O in a skewed box of 4 to 6 Å, none closer than 0.9 Å."""
    return _random_structure


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def make_config() -> Callable[..., NequIPConfig]:
    """A small resolved NequIP config of H and O in float64 with any keys replaced."""

    def make(**keys: Any) -> NequIPConfig:
        defaults: dict[str, Any] = {
            "cutoff": 3.5,
            "types": ["H", "O"],
            "dtype": "float64",
            "atomic_energies": {"H": -13.6, "O": -430.0},
            "energy_scale": {"H": 1.5, "O": 0.7},
            "avg_num_neighbors": 9.0,
            "l_max": 2,
            "num_layers": 3,
            "num_features": [6, 4, 3],
            "radial_mlp": [8],
        }
        return NequIPConfig(**(defaults | keys))

    return make


@pytest.fixture
def make_model(make_config: Callable[..., NequIPConfig]) -> Callable[..., EnergyModel]:
    def make(ops: Ops | None = None, seed: int = 0, **keys: Any) -> EnergyModel:
        torch.manual_seed(seed)
        config = make_config(**keys)
        registry = load_registry()
        ops = ops or Ops(registry.kernels, dtype=model_info(config).torch_dtype)
        return build_model(registry.models["nequip"], config, ops)

    return make


@pytest.fixture
def to_graph() -> Callable[[Structure, EnergyModel], Graph]:
    def make(structure: Structure, model: EnergyModel) -> Graph:
        info = model.info
        type_map = TypeMap(info.types, info.elements)
        return from_structure(structure, type_map, np.array(info.pair_cutoffs), make_matscipy(info.cutoff))

    return make


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def write_model(
    make_config: Callable[..., NequIPConfig], make_model: Callable[..., EnergyModel]
) -> Callable[..., Path]:
    """``(path, *, seed=0, data=None, **keys)``: the package file of a small model with random weights."""

    def write(path: Path, *, seed: int = 0, data: dict[str, Any] | None = None, **keys: Any) -> Path:
        block, weights = asdict(make_config(**keys)), dict(make_model(seed=seed, **keys).state_dict())
        provenance = Provenance(
            model=block,
            data=data or {"sha256": "0" * 64},
            config={},
            versions={"nequip-core": "0"},
            provider="nequip-core 0",
        )
        members = Members(
            manifest=manifest(provenance, kind="raw", weights=weights, raw={}),
            model=block,
            weights=weights,
            data=provenance.data,
            metrics={"val_loss": 0.5},
            check={"structures": []},
            check_tensors={},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_package(path, members)
        return path

    return write


PUBLISHED = Path(__file__).parents[1] / "golden" / "published"
SMALL_MODELS = {"nequip": "nequip-0.16-checkpoint", "allegro": "allegro-0.8-checkpoint"}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], tuple[Path, Path]]:
    """``(name)``: the package of a small "nequip" or "allegro" (H and O, float64, cut-offs by pair), and its .pt2.

    Each is compiled once, whatever the number of workers.
    """
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent

    def make(name: str) -> tuple[Path, Path]:
        package, out = folder / f"{name}.nequip.zip", folder / f"{name}.nequip.pt2"
        with FileLock(folder / f"{name}.lock"):
            if not out.exists():
                assert main(["convert", str(PUBLISHED / SMALL_MODELS[name] / "last.ckpt"), str(package)]) == 0
                assert main(["compile", str(package), str(out), "--target", "ase"]) == 0
        return package, out

    return make
