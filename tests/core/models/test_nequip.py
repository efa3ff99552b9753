"""NequIP: the options, and equality with numbers of the published package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nequip_core.errors import ConfigError
from nequip_core.graph import Graph, collate
from nequip_core.models.base import EnergyModel
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.structure import Structure

Models = Callable[..., EnergyModel]
ToGraph = Callable[[Structure, EnergyModel], Graph]
Structures = Callable[..., Structure]


def layouts(model: EnergyModel) -> list[str]:
    return [str(layer.irreps_out) for layer in model.architecture.layers]  # type: ignore[union-attr]


def test_hidden_irreps_are_those_that_are_reached_and_matter(make_model: Models) -> None:
    # 1e and 2o exist after the second layer, but can not become even scalars in the third.
    assert layouts(make_model()) == ["6x0e+4x1o+3x2e", "6x0e+4x1o+3x2e", "6x0e"]
    assert layouts(make_model(num_layers=4))[1:3] == ["6x0e+4x1e+4x1o+3x2e+3x2o", "6x0e+4x1o+3x2e"]
    # Odd scalars, whose nonlinearity is tanh, matter from six layers on.
    assert layouts(make_model(num_layers=6))[2] == "6x0e+6x0o+4x1e+4x1o+3x2e+3x2o"
    assert layouts(make_model(parity=False)) == ["6x0e+4x1o+3x2e"] * 2 + ["6x0e"]


@pytest.mark.parametrize(
    "keys",
    [
        {"num_features": 5},
        {"l_max": 0, "num_features": 4},
        {"type_embedding_dim": 1},
        {"radial_mlp": []},
        {"readout_mlp": [7]},
        {"nonlinearity": "mish"},
        {"train_bessels": True},
        {"avg_num_neighbors": {"H": 3.0, "O": 8.0}},
        {"train_atomic_energies": True, "train_energy_scale": True},
    ],
)
def test_every_parameter_that_trains_gets_a_gradient(
    keys: dict[str, Any], rng: np.random.Generator, make_model: Models, to_graph: ToGraph, random_structure: Structures
) -> None:
    model = make_model(**keys)
    prediction = Potential(model).train()(to_graph(random_structure(rng), model))
    (prediction.forces.square().sum() + prediction.energy.square().sum()).backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or p.grad.abs().max() == 0)
    ]
    assert missing == []


@pytest.mark.parametrize("bad", [{"num_features": [4, 4]}, {"num_layers": 0}, {"num_features": [0, 1, 1]}])
def test_values_that_make_no_model(bad: dict[str, Any], make_model: Models) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        make_model(**bad)


def test_receiver_counts_its_own_neighbors(
    rng: np.random.Generator, make_model: Models, to_graph: ToGraph, random_structure: Structures
) -> None:
    """avg_num_neighbors by type belongs to the receiving atom: with one layer, the others' numbers do not matter."""
    structure = random_structure(rng)
    energies = []
    for oxygen in (2.0, 8.0):
        model = make_model(num_layers=1, avg_num_neighbors={"H": 4.0, "O": oxygen})
        energies.append(Potential(model)(to_graph(structure, model)).atomic_energy)
    changed = (energies[0] - energies[1]).abs() > 1e-9
    assert torch.equal(changed, torch.from_numpy(structure.numbers == 8))


def test_two_domains_are_one(
    rng: np.random.Generator, make_model: Models, to_graph: ToGraph, random_structure: Structures
) -> None:
    """Atoms divided between two processes, with ghosts one cut-off deep and features exchanged before each gather."""
    whole_structure = random_structure(rng, 10)
    model = make_model(num_layers=3)
    whole = to_graph(whole_structure, model)
    owner = torch.arange(10) % 2
    domains, origin = [], []
    for rank in (0, 1):
        edges = owner[whole.edge_index[0]] == rank
        index, shift = whole.edge_index[:, edges], whole.edge_shift[edges]
        own = torch.nonzero(owner == rank).squeeze(1)
        # Every neighbour of an own atom becomes a ghost of its own, image by image, as in LAMMPS: no shifts are left.
        atoms = torch.cat([own, index[1]])
        positions = torch.cat([whole.positions[own], whole.positions[index[1]] + shift])
        local = torch.arange(len(atoms)) < len(own)
        centre = torch.searchsorted(own, index[0])
        neighbor = torch.arange(len(own), len(atoms))
        counts = torch.bincount(centre, minlength=len(atoms))
        zero = torch.zeros(1, dtype=torch.int64)
        domains.append(
            Graph(
                positions=positions,
                types=whole.types[atoms],
                edge_index=torch.stack([centre, neighbor]),
                edge_shift=torch.zeros_like(shift),
                structure=torch.zeros_like(atoms),
                structure_ptr=torch.tensor([0, len(atoms)]),
                row_ptr=torch.cat([zero, counts.cumsum(0)]),
                by_neighbor=torch.arange(len(neighbor)),
                neighbor_ptr=torch.cat([zero, torch.bincount(neighbor, minlength=len(atoms)).cumsum(0)]),
                local=local,
            )
        )
        origin.append(atoms)
    both = collate(domains)
    atoms = torch.cat(origin)
    rows_of_owners = torch.nonzero(both.local).squeeze(1)
    place = torch.empty(10, dtype=torch.int64)
    place[atoms[rows_of_owners]] = rows_of_owners
    calls = []

    def exchange(h: Tensor) -> Tensor:
        calls.append(h.shape)
        return h[place[atoms]]

    exchanging = make_model(ops=Ops(load_registry().kernels, dtype=torch.float64, exchange=exchange), num_layers=3)
    together = Potential(exchanging)(both)
    alone = Potential(model)(whole)
    assert len(calls) == 2  # before each gather but the first
    torch.testing.assert_close(together.energy.sum(0, keepdim=True), alone.energy, rtol=0, atol=1e-10)
    forces = torch.zeros(10, 3, dtype=torch.float64).index_add(0, atoms, together.forces)
    torch.testing.assert_close(forces, alone.forces, rtol=0, atol=1e-10)
    torch.testing.assert_close(together.virial.sum(0), alone.virial[0], rtol=0, atol=1e-9)


def test_float32_training_step_is_repeatable(
    rng: np.random.Generator, make_model: Models, to_graph: ToGraph, random_structure: Structures
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = make_model(dtype="float32", num_features=8, num_layers=2)
        graph = collate([to_graph(random_structure(rng, 12), model) for _ in range(2)])
        potential = Potential(model).train()
        steps = []
        for _ in range(20):
            model.zero_grad()
            potential(graph).forces.square().sum().backward()
            steps.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for step in steps for a, b in zip(step, steps[0], strict=True))
