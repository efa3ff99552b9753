"""Allegro: layouts, options, strict locality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nequip_allegro.model import AllegroConfig
from nequip_core.errors import ConfigError
from nequip_core.graph import Graph, from_structure
from nequip_core.models.base import EnergyModel
from nequip_core.models.build import build_model, model_info
from nequip_core.neighbors import make_matscipy
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.structure import Structure, TypeMap

Models = Callable[..., EnergyModel]


@pytest.fixture
def make_model() -> Models:
    def make(seed: int = 0, **keys: Any) -> EnergyModel:
        torch.manual_seed(seed)
        defaults: dict[str, Any] = {
            "cutoff": 3.0,
            "types": ["H", "O"],
            "dtype": "float64",
            "atomic_energies": {"H": -13.6, "O": -430.0},
            "energy_scale": {"H": 1.5, "O": 0.7},
            "avg_num_neighbors": 6.0,
            "num_scalar_features": 6,
            "num_tensor_features": 3,
            "two_body_dim": 5,
            "two_body_mlp": [7],
            "latent_mlp": [9],
            "readout_mlp": [4],
        }
        config = AllegroConfig(**(defaults | keys))
        registry = load_registry()
        ops = Ops(registry.kernels, dtype=model_info(config).torch_dtype)
        return build_model(registry.models["allegro"], config, ops)

    return make


def chain(atoms: int = 7, spacing: float = 1.1) -> Structure:
    """A bent line of H and O, much longer than the cut-off."""
    rng = np.random.default_rng(2)
    positions = np.arange(atoms)[:, None] * [spacing, 0.3, 0.1] + rng.normal(scale=0.1, size=(atoms, 3))
    numbers = np.array([1, 8] * atoms)[:atoms]
    return Structure(positions=positions, numbers=numbers, cell=np.zeros((3, 3)), pbc=np.full(3, False))


def to_graph(structure: Structure, model: EnergyModel) -> Graph:
    info = model.info
    cutoffs = np.array(info.pair_cutoffs)
    return from_structure(structure, TypeMap(info.types, info.elements), cutoffs, make_matscipy(info.cutoff))


def layouts(model: EnergyModel) -> list[str]:
    contractions = model.architecture.contractions  # type: ignore[union-attr]
    return ["+".join(map(str, one.dense.spec.irreps_out)) for one in contractions]  # type: ignore[union-attr]


def test_irreps_are_those_that_exist_and_matter(make_model: Models) -> None:
    assert layouts(make_model()) == ["0e+1o+2e", "0e"]
    assert layouts(make_model(num_layers=3)) == ["0e+1e+1o+2e+2o", "0e+1o+2e", "0e"]
    assert layouts(make_model(num_layers=4))[1] == "0e+1e+1o+2e+2o"
    assert layouts(make_model(num_layers=3, parity=False))[0] == "0e+1o+2e"


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_strictly_local_bit_for_bit(layers: int, make_model: Models) -> None:
    """What lies beyond one cut-off changes nothing, neither by its place nor by its type."""
    model = make_model(num_layers=layers)
    assert model.info.strictly_local
    assert model.info.ghost_distance == 3.0
    potential = Potential(model).eval()
    structure = chain()
    far = structure.positions.copy()
    far[-1] += [0.4, -0.2, 0.3]
    numbers = structure.numbers.copy()
    numbers[-1] = 9 - numbers[-1]
    energies = potential(to_graph(structure, model)).atomic_energy
    changed = potential(to_graph(replace(structure, positions=far, numbers=numbers), model)).atomic_energy
    reach = np.linalg.norm(structure.positions - structure.positions[-1], axis=1) > 3.5
    assert reach.sum() >= 3
    assert torch.equal(energies[reach], changed[reach])
    assert not torch.equal(energies[~reach], changed[~reach])


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"num_layers": 3},
        {"parity": False},
        {"l_max": 0},
        {"tp_path_channel_coupling": False},
        {"weight_individual_irreps": False},
        {"two_body": "spline"},
        {"two_body_mlp": [], "latent_mlp": [], "readout_mlp": []},
        {"train_bessels": True, "polynomial_cutoff_p": 2},
        {"avg_num_neighbors": {"H": 2.0, "O": 3.0}},
        {"nonlinearity": "mish", "zbl": True},
    ],
)
def test_every_parameter_gets_a_gradient(keys: dict[str, Any], make_model: Models) -> None:
    model = make_model(**keys)
    prediction = Potential(model).train()(to_graph(chain(), model))
    (prediction.forces.square().sum() + prediction.energy.square().sum()).backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or p.grad.abs().max() == 0)
    ]
    assert missing == []


@pytest.mark.parametrize(
    "bad", [{"num_layers": 0}, {"two_body": "fourier"}, {"two_body_dim": 1}, {"num_tensor_features": 0}]
)
def test_values_that_make_no_model(bad: dict[str, Any], make_model: Models) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        make_model(**bad)


def test_float32_training_step_is_repeatable(make_model: Models) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = make_model(dtype="float32")
        graph = to_graph(chain(40), model)
        potential = Potential(model).train()
        steps = []
        for _ in range(20):
            model.zero_grad()
            potential(graph).forces.square().sum().backward()
            steps.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for step in steps for a, b in zip(step, steps[0], strict=True))
