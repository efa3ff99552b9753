"""What follows from weights is computed again when, and only when, they changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nequip_core.ops.kept import Kept
from nequip_core.ops.promises import promised
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.checks import make_case
from nequip_core.testing.systems import crystal


class Doubled:
    """Twice a tensor; counts how often it was computed."""

    def __init__(self) -> None:
        self.kept, self.calls = Kept(), 0

    def make(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return 2 * weight

    def of(self, weight: Tensor) -> Tensor:
        with promised(constant_weights=True, vectors_once=True):
            return self.kept(self.make, weight)


def in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.add_(1)


def by_an_optimizer(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()


def by_a_fused_optimizer(weight: nn.Parameter) -> None:
    """Which torch does not count."""
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], lr=0.5, fused=True).step()


def replaced(weight: nn.Parameter) -> None:
    weight.data = torch.full((3,), 5.0)


def in_another_dtype(weight: nn.Parameter) -> None:
    weight.data = weight.data.double()


@pytest.mark.parametrize("change", [in_place, by_an_optimizer, by_a_fused_optimizer, replaced, in_another_dtype])
def test_a_change_is_seen(change: Callable[[nn.Parameter], None]) -> None:
    weight, doubled = nn.Parameter(torch.ones(3)), Doubled()
    assert doubled.of(weight) is doubled.of(weight)
    assert doubled.calls == 1
    change(weight)
    assert torch.equal(doubled.of(weight), 2 * weight)
    assert doubled.of(weight).dtype == weight.dtype
    assert doubled.calls == 2


def test_another_tensor_is_another_one_wherever_it_lies() -> None:
    doubled = Doubled()
    for number in range(5):
        assert torch.equal(doubled.of(torch.full((3,), float(number))), torch.full((3,), 2.0 * number))
    assert doubled.calls == 5


def test_elsewhere_weights_have_derivatives_and_nothing_is_kept() -> None:
    weight, doubled = nn.Parameter(torch.ones(3)), Doubled()
    assert not doubled.of(weight).requires_grad
    for _ in range(2):
        doubled.kept(doubled.make, weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 4.0))
    weight.data.add_(1)  # as torch does not count it; training has dropped what was kept
    assert torch.equal(doubled.of(weight), torch.full((3,), 4.0))


def test_inference_tensors_are_not_kept() -> None:
    doubled = Doubled()
    with torch.inference_mode():
        weight = torch.ones(3)
        for number in (1.0, 2.0):
            weight.fill_(number)
            assert doubled.of(weight)[0] == 2 * number


def test_copies_keep_nothing() -> None:
    weight, doubled = nn.Parameter(torch.ones(3)), Doubled()
    doubled.of(weight)
    for copied in (copy.deepcopy(doubled), pickle.loads(pickle.dumps(doubled))):
        copied.of(weight)
        assert copied.calls == 2


@pytest.mark.parametrize("name", ["allegro", "nequip"])
def test_a_potential_follows_its_weights(name: str) -> None:
    """As after a step of training, a load, a change of dtype and back."""
    case, other = (make_case(load_registry().models[name], seed=seed) for seed in (0, 1))
    graph = case.graph(crystal())
    forces = [one.potential(graph).forces for one in (case, other)]
    assert not torch.equal(*forces)
    case.potential.load_state_dict(other.potential.state_dict())
    assert torch.equal(case.potential(graph).forces, forces[1])
    with torch.no_grad():
        for weight in case.potential.parameters():
            weight.mul_(1.01)
    changed = case.potential(graph).forces
    assert torch.equal(changed, copy.deepcopy(case.potential)(graph).forces)
    assert not torch.equal(changed, forces[1])
    trained = case.potential.train()(graph).forces
    torch.testing.assert_close(changed, trained, rtol=1e-9, atol=1e-9)
