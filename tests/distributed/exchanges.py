"""What two ranks tell each other, from within one of them: `test_exchanges.py` starts both, and an error ends both."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nequip_core.errors import InputError
from nequip_core.training.ranks import Ranks, place_of
from nequip_core.training.strategy import GradientSums

USED = {0: ("both", "first"), 1: ("both",)}
"""Parameters that each rank uses; no rank uses "none"."""


class Model(nn.Module):
    """Parameters of several shapes, and of two dtypes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.both = nn.Parameter(torch.randn(3, 4, dtype=dtype))
        self.first = nn.Parameter(torch.randn(5, dtype=dtype))
        self.none = nn.Parameter(torch.randn((), dtype=torch.float32))

    def loss(self, rank: int) -> torch.Tensor:
        """A rank's share."""
        return sum((self.get_parameter(name).double() * (rank + 2)).square().sum() for name in USED[rank]) / 7


def train(model: Model, steps: int, ranks: Ranks | None) -> list[float]:
    """Steps of a rank, or of one process that does the work of both."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    sums = GradientSums(ranks) if ranks else None
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        for rank in (0, 1) if ranks is None else (ranks.rank,):
            loss = model.loss(rank)
            loss.backward()
            losses.append(loss.item())
        if sums and ranks:
            mine = torch.tensor([[losses[-1], float(ranks.rank)]], dtype=torch.float64)
            shares = sums([*model.parameters()], mine, "a step")
            losses[-1:] = shares[:, 0].tolist()
            assert shares[:, 1].tolist() == [0.0, 1.0]
        assert model.none.grad is None
        assert model.first.grad is not None
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return losses


def check_gradients(ranks: Ranks) -> None:
    """The weights of two ranks are those of one process; losses are told exactly, whatever the dtype."""
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        alone, shared = Model(dtype), Model(dtype)
        count = 0
        function = dist.all_reduce

        def counted(*args: Any, function: Any = function) -> None:
            nonlocal count
            count += 1
            function(*args)

        dist.all_reduce = counted
        losses = train(shared, 5, ranks)
        dist.all_reduce = function
        assert count == 5
        expected = train(alone, 5, None)
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(shared.get_parameter(name), parameter, rtol=0, atol=tolerance)
        pair = torch.tensor([losses, expected], dtype=torch.float64)
        torch.testing.assert_close(pair[0], pair[1], rtol=10 * tolerance, atol=0)
        assert torch.equal(shared.none, Model(dtype).none)


def check_losses(ranks: Ranks) -> None:
    """float64 numbers through a float32 buffer, bit for bit; one that is not finite stays with its rank."""
    parameter = nn.Parameter(torch.zeros(2))
    for mine in ((0.1, 1 / 3), (1e-30, 2.5e10), (float("nan"), 1.0), (1.0, float("inf"))):
        both = torch.tensor(mine, dtype=torch.float64)
        shares = torch.stack([both[ranks.rank], torch.zeros_like(both[0])])[None]
        found = GradientSums(ranks)([parameter], shares, "losses")
        torch.testing.assert_close(found[:, 0], both, rtol=0, atol=0, equal_nan=True)


def check_talk(ranks: Ranks) -> None:
    """Objects, and the comparison of both sides."""
    assert ranks.gather({"rank": ranks.rank}, "rows") == [{"rank": 0}, {"rank": 1}]
    assert ranks.from_first(f"I am {ranks.rank}", "a name") == "I am 0"
    ranks.same({"seed": 1}, "never said")
    with pytest.raises(InputError, match=r"model\.l_max is 1 in rank 0 on .* but 2 in rank 1 on"):
        ranks.same({"seed": 1, "model.l_max": 1 + ranks.rank}, "Give the same.")
    order = []
    with ranks.first_ahead("work"):
        order.append(ranks.rank)
    assert ranks.gather(order, "order") == [[0], [1]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with Ranks(place_of(os.environ)) as both:
        for check in (check_gradients, check_losses, check_talk):
            check(both)
    sys.exit(0)
