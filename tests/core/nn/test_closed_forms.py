"""Derivatives that a potential takes in closed form are those of autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nequip_core.nn.directions import Directions
from nequip_core.nn.radial import BesselBasis
from nequip_core.ops.promises import promised


def both(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Values and derivative of a random sum of them, elsewhere and in a potential."""
    results: tuple[list[Tensor], list[Tensor]] = ([], [])
    for once, result in zip((False, True), results, strict=True):
        with promised(constant_weights=once, vectors_once=once):
            leaf = x.clone().requires_grad_()
            out = function(leaf)
            direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
            result += [out.detach(), *torch.autograd.grad(out, leaf, direction)]
    return results


@pytest.mark.parametrize("l_max", range(5))
def test_directions(l_max: int) -> None:
    directions = Directions(l_max)
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (values, derivative), (evaluated, closed) = both(lambda x: torch.cat(directions.of(x), dim=1), vectors)
    assert torch.equal(values, evaluated)
    torch.testing.assert_close(closed, derivative, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [2, 6, 9])
@pytest.mark.parametrize("trainable", [False, True])
def test_bessel_functions(p: int, trainable: bool) -> None:
    basis = BesselBasis(8, p, trainable=trainable, factor=0.7)
    if trainable:
        basis.float()  # as parameters are in a model of float32
    x = torch.linspace(0.02, 1.2, 60, dtype=torch.float64).unsqueeze(1)
    (values, derivative), (evaluated, closed) = both(basis, x)
    assert torch.equal(values, evaluated)
    torch.testing.assert_close(closed, derivative, rtol=1e-11, atol=1e-11)
    assert closed[x >= 1].abs().max() < 1e-25


def test_a_training_step_goes_on_by_weights_only() -> None:
    """The derivative of a loss of forces is the same; none is taken by the vectors again."""
    directions, basis = Directions(3), BesselBasis(4, 6)
    weights = [torch.randn(size, 2, dtype=torch.float64, requires_grad=True) for size in (16, 4)]
    start = 0.3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for once in (False, True):
        vectors = start.clone().requires_grad_()
        with promised(constant_weights=False, vectors_once=once):
            distance, harmonics = directions.of(vectors)
            energy = ((harmonics @ weights[0]) * (basis(distance) @ weights[1])).square().sum()
            (forces,) = torch.autograd.grad(energy, vectors, create_graph=True)
        (energy + forces.square().sum()).backward()
        assert (vectors.grad is None) == once
        found.append([weight.grad.clone() for weight in weights])
        for weight in weights:
            weight.grad = None
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)
