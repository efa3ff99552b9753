"""silu in a training step has torch's derivatives, to the second."""

from __future__ import annotations

import torch

from nequip_core.ops.promises import promised
from nequip_core.ops.silu import silu


def test_derivatives() -> None:
    start = torch.linspace(-9, 9, 50, dtype=torch.float64)
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for once in (False, True):
        x, factor = start.clone().requires_grad_(), weight.clone().requires_grad_()
        with promised(constant_weights=False, vectors_once=once):
            out = silu(x) * factor
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        second = torch.autograd.grad(first.pow(3).sum() + out.sum(), [x, factor])
        found.append([out, first, *second])
    torch.testing.assert_close(*found, rtol=1e-13, atol=1e-13)
    assert not torch.equal(found[0][2], torch.zeros_like(found[0][2]))


def test_extreme_numbers() -> None:
    x = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    with promised(constant_weights=False, vectors_once=True):
        (first,) = torch.autograd.grad(silu(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first.detach(), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert torch.equal(second, torch.zeros(4))
