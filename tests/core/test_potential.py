"""Derivatives by finite differences, and the identities between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from nequip_core.graph import Graph, collate
from nequip_core.models.base import EnergyModel
from nequip_core.potential import Potential, stress
from nequip_core.structure import Structure

Models = Callable[..., EnergyModel]
ToGraph = Callable[[Structure, EnergyModel], Graph]
Structures = Callable[..., Structure]
STEP = 1e-4


@pytest.fixture
def model(make_model: Models) -> EnergyModel:
    return make_model(num_layers=2, zbl=True)


def strained(structure: Structure, strain: np.ndarray) -> Structure:
    deformation = np.eye(3) + strain
    return replace(structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation)


def test_forces_are_minus_the_slope_of_the_energy(
    rng: np.random.Generator, model: EnergyModel, to_graph: ToGraph, random_structure: Structures
) -> None:
    structure = random_structure(rng)
    potential = Potential(model).eval()
    forces = potential(to_graph(structure, model)).forces
    assert forces.abs().max() > 1e-2
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for sign in (1, -1):
            positions = structure.positions.copy()
            positions[atom, axis] += sign * STEP
            energies.append(potential(to_graph(replace(structure, positions=positions), model)).energy.item())
        assert forces[atom, axis].item() == pytest.approx(-(energies[0] - energies[1]) / (2 * STEP), abs=1e-6)


def test_stress_is_the_slope_by_strain_over_the_volume(
    rng: np.random.Generator, model: EnergyModel, to_graph: ToGraph, random_structure: Structures
) -> None:
    structure = random_structure(rng)
    potential = Potential(model).eval()
    virial = potential(to_graph(structure, model)).virial
    assert structure.volume is not None
    sigma = stress(virial, torch.tensor([structure.volume]))[0]
    assert torch.equal(sigma, sigma.T)
    for a, b in ((0, 0), (0, 1), (2, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] += STEP / 2
        strain[b, a] += STEP / 2
        energies = [potential(to_graph(strained(structure, sign * strain), model)).energy.item() for sign in (1, -1)]
        slope = (energies[0] - energies[1]) / (2 * STEP)
        assert sigma[a, b].item() == pytest.approx(slope / structure.volume, abs=1e-8)
        assert -0.5 * (virial[0, a, b] + virial[0, b, a]).item() == pytest.approx(slope, abs=1e-6)


def test_atomic_virials_sum_to_the_virial(
    rng: np.random.Generator, model: EnergyModel, to_graph: ToGraph, random_structure: Structures
) -> None:
    graph = collate([to_graph(random_structure(rng, n), model) for n in (5, 1, 3)])
    prediction = Potential(model).eval()(graph, atomic_virial=True)
    assert prediction.atomic_virial is not None
    for b, (start, stop) in enumerate([(0, 5), (5, 6), (6, 9)]):
        torch.testing.assert_close(prediction.atomic_virial[start:stop].sum(0), prediction.virial[b], rtol=0, atol=1e-9)
    assert prediction.energy.tolist() == pytest.approx(
        [prediction.atomic_energy[a:b].sum().item() for a, b in ((0, 5), (5, 6), (6, 9))]
    )


def test_ghosts_do_not_count(
    rng: np.random.Generator, model: EnergyModel, to_graph: ToGraph, random_structure: Structures
) -> None:
    """Energy and forces are of the sum over local atoms: dU_local/dx by finite differences."""
    structure = random_structure(rng)
    local = torch.tensor([True, False, True, True, False, True])
    potential = Potential(model).eval()

    def evaluate(positions: np.ndarray) -> tuple[float, torch.Tensor]:
        graph = to_graph(replace(structure, positions=positions), model)._replace(local=local)
        prediction = potential(graph)
        return prediction.energy.item(), prediction.forces

    _, forces = evaluate(structure.positions)
    up, down = structure.positions.copy(), structure.positions.copy()
    up[1, 1] += STEP
    down[1, 1] -= STEP
    assert forces[1, 1].item() == pytest.approx(-(evaluate(up)[0] - evaluate(down)[0]) / (2 * STEP), abs=1e-6)


def test_evaluation_keeps_no_graph_and_training_does(
    rng: np.random.Generator, model: EnergyModel, to_graph: ToGraph, random_structure: Structures
) -> None:
    graph = to_graph(random_structure(rng), model)
    potential = Potential(model)
    assert not any(tensor.requires_grad for tensor in potential.eval()(graph, atomic_virial=True) if tensor is not None)
    assert potential.train()(graph).forces.requires_grad


def test_no_edges(model: EnergyModel, to_graph: ToGraph) -> None:
    alone = Structure(positions=np.zeros((1, 3)), numbers=np.array([8]), cell=np.zeros((3, 3)), pbc=np.full(3, False))
    prediction = Potential(model).eval()(to_graph(alone, model))
    assert prediction.energy.item() == -430.0
    assert torch.equal(prediction.forces, torch.zeros(1, 3, dtype=torch.float64))
