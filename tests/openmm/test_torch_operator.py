"""The operator by itself: derivatives, types, what the plugin does not look at."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from openmm_support import ice, topology_of

from nequip_core.moving import MovingPotential
from nequip_core.narrow import Narrowing
from nequip_core.neighbors import DEVICE
from nequip_core.testing.recordings import Repeating
from nequip_openmm import evaluate
from nequip_openmm.evaluate import unwrap
from nequip_openmm.prepare import prepare
from nequip_openmm.region import parents


def arguments(model, *, atoms=None, lambda_name=None):
    """All but positions, box and parameter."""
    ready = prepare(
        model,
        topology_of(ice()),
        atoms=atoms,
        periodic=None,
        lambda_name=lambda_name,
        types=None,
        device="cpu",
        skin=1.0,
        embed=True,
    )
    blob = torch.frombuffer(bytearray(ready.content), dtype=torch.uint8)
    return ready.types, ready.indices, ready.spec.to_json(), blob


def inputs(dtype=torch.float64):
    positions = torch.tensor(ice().positions / 10, dtype=dtype, requires_grad=True)
    return positions, torch.tensor(ice().cell.array / 10, dtype=dtype)


def test_derivatives_by_positions_and_parameter(model):
    positions, box = inputs()
    factor = torch.tensor(0.4, requires_grad=True)
    rest = arguments(model, lambda_name="scale", atoms=[0, 1, 2, 5])
    energy, forces = torch.ops.nequip_openmm.energy_forces(positions, box, factor, *rest)
    energy.backward()
    torch.testing.assert_close(positions.grad, -forces)
    torch.testing.assert_close(factor.grad, (energy.detach() / 0.4).float())
    assert not forces[3:5].any()
    assert not forces.requires_grad


def test_a_finite_difference(model):
    positions, box = inputs()
    rest = arguments(model)
    _, forces = torch.ops.nequip_openmm.energy_forces(positions, box, None, *rest)
    energies = []
    for sign in (1, -1):
        moved = positions.detach().clone()
        moved[1, 2] += sign * 1e-5
        energies.append(torch.ops.nequip_openmm.energy_forces(moved, box, None, *rest)[0])
    assert float(energies[1] - energies[0]) / 2e-5 == pytest.approx(float(forces[1, 2]), rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forces_are_as_the_plugin_reads_them(dtype, model):
    positions, box = inputs(dtype)
    energy, forces = torch.ops.nequip_openmm.energy_forces(positions, box, None, *arguments(model))
    assert forces.dtype == dtype
    assert forces.is_contiguous()
    assert energy.dtype == torch.float64
    assert energy.shape == ()
    exact, of_exact = torch.ops.nequip_openmm.energy_forces(*inputs(), None, *arguments(model))
    torch.testing.assert_close(energy, exact, rtol=1e-6, atol=0)
    rms = of_exact.square().mean().sqrt()
    assert float((forces - of_exact).abs().max() / rms) < 1e-5


@pytest.fixture
def record(monkeypatch):
    """How steps are recorded: on the CPU, where they usually are not."""
    usual, record = evaluate.find_model, Repeating()

    def find(*arguments):
        model = usual(*arguments)
        narrowing = Narrowing(np.array(model.info.pair_cutoffs))
        recorded = {"device": model.device, "narrow": lambda tensors: list(narrowing(*tensors))}
        return SimpleNamespace(potential=model.potential, info=model.info, **recorded)

    monkeypatch.setattr(evaluate, "_EVALUATORS", {})
    monkeypatch.setattr(evaluate, "DEFAULT", DEVICE)
    monkeypatch.setattr(evaluate, "MovingPotential", partial(MovingPotential, record=record))
    monkeypatch.setattr(evaluate, "find_model", find)
    return record


def test_recorded_steps(model, record, monkeypatch):
    """Atoms and boxes of float32 that move, and what was given for them stays."""
    torch.manual_seed(0)
    rest = arguments(model, lambda_name="scale")
    positions, box = (tensor.detach() for tensor in inputs(torch.float32))
    factor = torch.tensor(0.4)
    steps = [(positions + 0.002 * torch.randn_like(positions), box * (1 + 0.01 * (n // 4 % 2))) for n in range(12)]
    found = [torch.ops.nequip_openmm.energy_forces(*step, factor, *rest) for step in steps]
    assert record.recorded == 1
    assert record.repeated == 1 + 9 + 2  # the check, nine steps, and two in vain, since there is another box
    assert record.listed == 1 + 1  # to be compared, and for the box that was there before
    (one,) = evaluate._EVALUATORS.values()
    assert one._moving.graph.builds == 3  # none of them in vain
    monkeypatch.undo()
    for (energy, forces), step in zip(found, steps, strict=True):
        expected, of_usual = torch.ops.nequip_openmm.energy_forces(*step, factor, *rest)
        torch.testing.assert_close(energy, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(forces, of_usual, rtol=1e-6, atol=1e-6 * float(of_usual.abs().max()))
        assert not forces.requires_grad


def test_unwrapping_follows_the_bonds_across_the_box():
    torch.manual_seed(0)
    chain = torch.cumsum(0.6 * torch.randn(40, 3, dtype=torch.float64), 0)
    cell = torch.tensor([[6.0, 0, 0], [1.5, 5.0, 0], [-2.0, 1.0, 7.0]], dtype=torch.float64)
    order = torch.randperm(40)
    bonds = [(int(order[n]), int(order[n + 1])) for n in range(39)]
    positions = torch.empty_like(chain)
    positions[order] = chain
    wrapped = positions + torch.randint(-2, 3, (40, 3)).double() @ cell
    short = [n for n in range(39) if (chain[n + 1] - chain[n]).norm() > 2.4]
    assert not short  # nearest images are the bonded ones
    found = unwrap(wrapped, cell, torch.tensor(parents(40, bonds)))
    torch.testing.assert_close(found - found[0], positions - positions[0])


def test_parents_lead_to_the_first_atom_of_each_molecule():
    assert parents(6, [(0, 2), (2, 1), (4, 5)]) == (0, 2, 0, 0, 0, 4)
    assert parents(1, []) == (0,)
