"""From a config to objects: what the training set decides."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from nequip_core.config import build
from nequip_core.config.build import (
    EvaluationSet,
    build_loss,
    oversized,
    repeated,
    resolve_model,
    resolve_types,
    seconds,
)
from nequip_core.config.schema import Config
from nequip_core.data.dataset import Dataset
from nequip_core.data.frames import Frames
from nequip_core.data.statistics import AtomicEnergies, Statistics
from nequip_core.errors import InputError
from nequip_core.models.nequip import NequIPConfig
from nequip_core.neighbors import make_vesin
from nequip_core.plugins.manager import load_registry
from nequip_core.structure import Structure, TypeMap


def structure(numbers: list[int], names: tuple[str, ...] | None = None) -> Structure:
    count = len(numbers)
    return Structure(
        positions=3.0 * np.arange(3 * count, dtype=float).reshape(count, 3),
        numbers=np.array(numbers),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        type_names=names,
        source="made frame 0",
    )


def statistics(**values: Any) -> Statistics:
    energies = AtomicEnergies("least_squares", {"H": -13.6, "O": -430.0}, 2, "rank 2 of 2")
    known: dict[str, Any] = {
        "n_structures": 3,
        "n_atoms": 9,
        "n_edges": 18,
        "atoms_per_type": {"H": 6, "O": 3},
        "avg_num_neighbors": 2.0,
        "avg_num_neighbors_per_type": {"H": 1.5, "O": 3.0},
        "forces_rms": 0.5,
        "per_atom_energy_mean": -150.0,
        "per_atom_energy_std": 0.25,
        "atomic_energies": energies,
    }
    return Statistics(**(known | values))


def test_types_are_the_elements_by_atomic_number() -> None:
    found = resolve_types(NequIPConfig(cutoff=3.0), [structure([29, 8]), structure([1, 8])])
    assert (found.types, found.elements) == (["H", "O", "Cu"], {})


def test_finer_types_bring_their_elements() -> None:
    water = structure([8, 1, 1], ("Ow", "Hw", "Hw"))
    found = resolve_types(NequIPConfig(cutoff=3.0), [water, structure([8, 6], ("O", "C"))])
    assert (found.types, found.elements) == (["Hw", "C", "O", "Ow"], {"Ow": "O", "Hw": "H"})
    given = resolve_types(NequIPConfig(cutoff=3.0, types=["Ow", "Hw"], elements={"Ow": "O"}), [water])
    assert (given.types, given.elements) == (["Ow", "Hw"], {"Ow": "O", "Hw": "H"})


def test_a_type_of_two_elements() -> None:
    with pytest.raises(InputError, match="made frame 0: atoms of type 'X' are"):
        resolve_types(NequIPConfig(cutoff=3.0), [structure([8, 1], ("X", "X"))])


def test_resolved_numbers() -> None:
    config = NequIPConfig(cutoff=3.0, types=["H", "O"])
    found = resolve_model(config, statistics())
    assert found.atomic_energies == {"H": -13.6, "O": -430.0}
    assert (found.energy_scale, found.avg_num_neighbors) == (0.5, 2.0)
    other = replace(config, energy_scale="per_atom_energy_std", avg_num_neighbors="auto_per_type")
    found = resolve_model(other, statistics())
    assert (found.energy_scale, found.avg_num_neighbors) == (0.25, {"H": 1.5, "O": 3.0})
    given = replace(config, energy_scale={"H": 1.0, "O": 2.0}, avg_num_neighbors=7.0)
    found = resolve_model(given, statistics(forces_rms=None, avg_num_neighbors=0.0))
    assert (found.energy_scale, found.avg_num_neighbors) == ({"H": 1.0, "O": 2.0}, 7.0)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ({}, {"forces_rms": None}, "no label for it"),
        ({}, {"forces_rms": 0.0}, "only zeros"),
        ({}, {"avg_num_neighbors": 0.0}, "No atom of the training set has a neighbour"),
        (
            {"avg_num_neighbors": "auto_per_type"},
            {"avg_num_neighbors_per_type": {"H": 0.0, "O": 1.0}},
            "No atom of type H of",
        ),
    ],
)
def test_numbers_that_the_data_do_not_give(keys: dict[str, Any], values: dict[str, Any], message: str) -> None:
    config = NequIPConfig(cutoff=3.0, types=["H", "O"], **keys)
    with pytest.raises(InputError, match=message):
        resolve_model(config, statistics(**values))


@pytest.mark.parametrize(("per_atom", "quantity"), [(True, "energy_per_atom"), (False, "energy")])
def test_loss_has_the_terms_that_weigh_something(per_atom: bool, quantity: str) -> None:
    config = Config()
    config.training.loss.energy.per_atom = per_atom
    config.training.loss.energy.weight = 3.0
    loss = build_loss(config, load_registry())
    assert [(term.quantity, term.weight) for term in loss.terms] == [(quantity, 3.0), ("forces", 1.0)]


@pytest.mark.parametrize(
    ("changes", "edges", "cuda", "expected"),
    [
        ({}, 99_000.0, True, True),
        ({}, 101_000.0, True, False),
        ({}, 99_000.0, False, False),
        ({"compile": False}, 99_000.0, True, False),
        ({"cuda_graphs": False}, 99_000.0, True, False),
        ({"cuda_graphs": True}, 101_000.0, True, True),
        ({"strategy": "theirs"}, 99_000.0, True, False),
        ({"strategy": "deferred_ddp"}, 99_000.0, True, True),
    ],
)
def test_which_steps_are_recorded(
    changes: dict[str, Any], edges: float, cuda: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "device_type", lambda config: "cuda" if cuda else "cpu")
    config = Config(model=NequIPConfig(cutoff=3.0))
    config.training.compile = True
    for name, value in changes.items():
        setattr(config.trainer if name == "strategy" else config.training, name, value)
    data: Any = SimpleNamespace(usual_edges=lambda: edges)
    assert build.records_steps(config, data) is expected


class WandbError(Exception):
    """In the place of ``wandb.errors.Error``; the package is not among those that the tests need."""


@pytest.fixture
def wandb_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(errors=SimpleNamespace(Error=WandbError))
    monkeypatch.setitem(sys.modules, "wandb", package)  # type: ignore[arg-type]


@pytest.mark.usefixtures("wandb_package")
def test_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    began = SimpleNamespace(experiment="a run")
    monkeypatch.setattr(build, "WandbLogger", lambda **options: made.update(options) or began)
    monkeypatch.setenv("WANDB_PROJECT", "copper")
    config = Config(loggers=["csv", "wandb", "tensorboard"], model=NequIPConfig(cutoff=3.0))
    config.run.name = "one"
    wandb, tensorboard = build.build_loggers(config, tmp_path, "abc")
    assert wandb is began
    assert isinstance(tensorboard, TensorBoardLogger)
    assert tensorboard.log_dir == str(tmp_path / "tensorboard")
    # The same id and resume=allow: a run that goes on is one run there too.
    assert (made["id"], made["resume"], made["name"], made["project"]) == ("abc", "allow", "one", "copper")
    assert made["save_dir"] == tmp_path
    assert made["config"]["model"]["cutoff"] == 3.0
    assert build.build_loggers(Config(loggers=["csv"]), tmp_path, "abc") == []


@pytest.mark.usefixtures("wandb_package")
def test_a_run_that_wandb_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, **options: Any) -> None:
            pass

        @property
        def experiment(self) -> None:
            raise WandbError("No API key configured.")

    monkeypatch.setattr(build, "WandbLogger", Refused)
    with pytest.raises(InputError, match=r"takes no run: No API key configured\..*wandb login.*WANDB_MODE=offline"):
        build.build_loggers(Config(loggers=["wandb"], model=NequIPConfig(cutoff=3.0)), tmp_path, "abc")


def test_seconds() -> None:
    assert seconds(None) is None
    assert seconds("01:02:03:04") == 93784


def shared(frames: list[Structure], train: list[int], val: list[int]) -> list[str]:
    whole = Frames.of(frames)
    return list(repeated(whole.take(train), {"val": EvaluationSet(structures=whole.take(val), paths=())}))


def test_frames_of_the_training_set_in_another_set_are_counted() -> None:
    frames = [replace(structure([8, 1] if n % 2 else [1, 8]), source=f"made.xyz frame {n}") for n in range(6)]
    (sentence,) = shared(frames, [0, 2, 4], [1, 3, 4])
    assert sentence.startswith("1 of the 3 frames of val are in the training set too")
    assert "made.xyz frame 4 = made.xyz frame 0" in sentence
    (sentence,) = shared(frames, [0, 1], [2, 3, 4, 5])
    assert "4 of the 4 frames of val" in sentence
    assert "..." in sentence
    assert shared(frames, [0, 2], [1, 3]) == []


def test_structures_beyond_a_limit_are_counted() -> None:
    data = Dataset(
        [structure([1] * n) for n in (2, 3, 4)], TypeMap(("H",), ("H",)), np.full((1, 1), 16.0), make_vesin(16.0)
    )
    config = Config()
    assert list(oversized(config, data)) == []
    config.data.batch.max_edges = 5
    config.data.batch.by, config.data.batch.size = "atoms", 3
    edges, atoms = oversized(config, data)
    assert data.edges.tolist() == [2, 4, 6]
    assert edges.startswith("1 of the 3 training frames exceed data.batch.max_edges=5, with up to 6 edges")
    assert atoms.startswith("1 of the 3 training frames exceed data.batch.size=3, with up to 4 atoms")
