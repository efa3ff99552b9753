"""Operators that are called without the dispatcher are the same, and the dispatcher has them where someone listens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nequip_core.ops.direct import Direct
from nequip_core.ops.segment import gather, segment_sum

INDEX, PTR = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 2, 2, 5])


class Names(TorchDispatchMode):
    """Of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operators() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    with Names() as seen:
        gather(x, INDEX, PTR).sum().backward()
    assert [name for name in seen.names if name.startswith("nequip")] == [
        "nequip.gather.default",
        "nequip.segment_sum.default",
    ]


@pytest.mark.parametrize("call", [gather, segment_sum])
def test_derivatives_are_those_of_the_dispatcher(call: Any) -> None:
    rows = 3 if call is gather else 5
    x = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (call, getattr(torch.ops.nequip, call.__name__).default):
        out = function(x, INDEX, PTR).pow(3).sum()
        (first,) = torch.autograd.grad(out, x, create_graph=True)
        results += [out, first, *torch.autograd.grad(first.square().sum(), x)]
    for direct, dispatched in zip(results[:3], results[3:], strict=True):
        assert torch.equal(direct, dispatched)


def test_lists_are_taken_and_given() -> None:
    """(a, [b, c]) -> [a b, a c], with a third argument that is no tensor."""

    def compute(a: Tensor, others: list[Tensor], power: int) -> list[Tensor]:
        return [a * other for other in others]

    def keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        a, others, ctx.power = inputs
        ctx.save_for_backward(a, *others)

    def differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
        assert ctx.power == 7
        a, *others = ctx.saved_tensors
        return sum(g * other for g, other in zip(grads, others, strict=True)), [g * a for g in grads], None

    direct = Direct(pytest.fail, compute, keep, differentiate, gives_list=True)
    a, b, c = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (2.0, 3.0, 5.0))
    result = direct(a, [b, c], 7)
    assert isinstance(result, list)
    (result[0] + result[1].square()).backward()
    assert [x.grad.item() for x in (a, b, c)] == [3 + 2 * 10 * 5, 2, 2 * 10 * 2]


def test_without_a_derivative_the_dispatcher_says_so() -> None:
    asked: list[Tensor] = []
    direct = Direct(lambda x: asked.append(x) or x, lambda x: 2 * x)
    x = torch.ones(2, requires_grad=True)
    direct(x.detach())
    assert not asked
    direct(x)
    assert asked
