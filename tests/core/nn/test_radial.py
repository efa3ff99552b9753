"""Envelope, Bessel basis and scaled distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nequip_core.graph import build_graph
from nequip_core.neighbors import make_matscipy
from nequip_core.nn.radial import BesselBasis, ScaledDistance, polynomial_envelope


def test_envelope_vanishes_with_two_derivatives() -> None:
    x = torch.tensor([[0.0], [0.5], [1.0], [1.7]], dtype=torch.float64, requires_grad=True)
    value = polynomial_envelope(x, 6)
    assert value[0].item() == 1
    assert 0 < value[1].item() < 1
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    for order in (value, first, second):
        assert order[2:].abs().max().item() < 1e-12
    x = 0.5
    expected = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    assert value[1].item() == pytest.approx(expected, abs=1e-15)


def test_bessel_basis_is_the_formula() -> None:
    x = torch.tensor([[0.3], [0.9]], dtype=torch.float64)
    values = BesselBasis(4, 6, factor=2.0)(x)
    for row, r in zip(values, (0.3, 0.9), strict=True):
        envelope = polynomial_envelope(torch.tensor([[r]], dtype=torch.float64), 6).item()
        expected = [2.0 * math.sin(n * math.pi * r) / r / math.pi * envelope for n in (1, 2, 3, 4)]
        assert row.tolist() == pytest.approx(expected)


def test_trainable_frequencies_get_a_gradient() -> None:
    basis = BesselBasis(3, 6, trainable=True)
    basis(torch.tensor([[0.4]], dtype=torch.float64)).sum().backward()
    assert basis.frequencies.grad is not None
    assert basis.frequencies.grad.abs().min() > 0
    assert not list(BesselBasis(3, 6).parameters())


def test_pair_cutoffs_are_by_centre_then_neighbor() -> None:
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    pairs = make_matscipy(4.0)(positions, np.zeros((3, 3)), np.full(3, False))
    cutoffs = np.array([[4.0, 2.0], [3.0, 4.0]])
    graph = build_graph(positions, np.array([0, 1]), pairs, np.zeros((3, 3)), cutoffs)
    scaled = ScaledDistance(cutoffs.tolist())(graph, torch.ones(2, 1, dtype=torch.float64))
    assert graph.edge_index.tolist() == [[0, 1], [1, 0]]
    assert scaled.squeeze(1).tolist() == pytest.approx([1 / 2.0, 1 / 3.0])
