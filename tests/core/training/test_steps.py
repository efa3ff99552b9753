"""The gradient of a step is the same however it is spread over ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nequip_core.data.dataset import Dataset
from nequip_core.data.loader import Steps
from nequip_core.potential import Potential
from nequip_core.training.loss import Loss

STEP = [6, 1, 3, 0, 7]


def gradient(potential: Potential, terms: Loss, data: Dataset, ranks: int, max_edges: int | None) -> tuple[Tensor, int]:
    """Of all parameters, summed over ranks; and how many micro-batches there were."""
    potential.zero_grad()
    count = 0
    for rank in range(ranks):
        for batch in Steps(data, max_edges, rank, ranks)[STEP]:
            terms(potential(batch.graph), batch).backward()
            count += 1
    return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None]), count


def test_of_ranks_and_micro_batches(make_run: Callable[..., Any], terms: Loss) -> None:
    run = make_run()
    run.relabel("train", 1, forces=None)
    run.relabel("train", 3, energy=None)
    potential = Potential(run.model).train()
    whole, count = gradient(potential, terms, run.train, 1, None)
    assert count == 1
    assert whole.abs().max() > 0.01
    for ranks, max_edges, expected in ((1, 1, 5), (2, None, 2), (3, 30, None), (7, None, 7)):
        found, count = gradient(potential, terms, run.train, ranks, max_edges)
        torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-12)
        assert expected in (None, count)


@pytest.mark.parametrize("max_edges", [None, 20])
def test_denominators_are_those_of_the_step(make_run: Callable[..., Any], max_edges: int | None) -> None:
    data = make_run().train
    atoms = int(data.atoms[STEP].sum())
    for rank in range(2):
        for batch in Steps(data, max_edges, rank, 2)[STEP]:
            assert [number.item() for number in batch.denominators] == [5, 3 * atoms, 9 * sum(n % 3 == 0 for n in STEP)]
