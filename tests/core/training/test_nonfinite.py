"""Losses are read late, and lose nothing by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch

from nequip_core.errors import InputError
from nequip_core.structure import Structure
from nequip_core.training.loss import Loss
from nequip_core.training.nonfinite import LossRecord, offending_to
from nequip_core.training.ranks import Wish


def shares(*losses: float, wish: Wish = Wish.GO_ON) -> torch.Tensor:
    """[ranks, 2] as a step gives them; the last rank has a wish."""
    wishes = [Wish.GO_ON] * (len(losses) - 1) + [wish]
    return torch.tensor([*zip(losses, wishes, strict=True)], dtype=torch.float64)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_mean_does_not_depend_on_when_it_was_read(every: int) -> None:
    values = torch.rand(10, dtype=torch.float64)
    expected = 0.0
    for value in values.tolist():
        expected += value
    record = LossRecord()
    record.every = every
    for value in values:
        assert record.add(shares(value), torch.tensor([0])) is None
    assert record.read() is None
    assert record.mean() == expected / 10
    assert record.last == values[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_one_is_found(bad: float) -> None:
    record = LossRecord()
    record.every = 4
    found = [record.add(shares(1, loss), torch.tensor([n, n + 10])) for n, loss in enumerate([1, 1, bad, bad])]
    assert found[:3] == [None] * 3
    assert found[3] is not None
    assert found[3].ids == [2, 12]
    assert found[3].ranks == (1,)
    assert record.steps == 3


def test_the_loss_is_that_of_all_ranks_and_the_strongest_wish_counts() -> None:
    record = LossRecord()
    record.every = 2
    assert record.add(shares(1.0, 0.25, wish=Wish.MAX_TIME), torch.tensor([0])) is None
    assert record.wish is Wish.GO_ON  # not read yet
    assert record.add(shares(2.0, 0.5), torch.tensor([0])) is None
    assert record.wish is Wish.MAX_TIME
    assert record.last == 2.5
    assert record.mean() == 3.75 / 2


def test_finite_shares_whose_sum_is_not() -> None:
    found = LossRecord().add(shares(1e308, 1e308), torch.tensor([4]))
    assert found is not None
    assert found.ranks == ()


def test_nothing_read_is_no_mean() -> None:
    assert LossRecord().mean() is None


def test_the_file_holds_the_structures(tmp_path: Path, structures: list[Structure]) -> None:
    path = tmp_path / "bad.extxyz"
    sentence = offending_to(path, lambda ids: [structures[n] for n in ids])([4, 0])
    assert "made.xyz frame 4, made.xyz frame 0" in sentence
    frames = ase.io.read(path, ":")
    assert [len(frame) for frame in frames] == [len(structures[4]), len(structures[0])]
    assert frames[1].get_potential_energy() == pytest.approx(structures[0].energy)


def test_a_validation_loss_that_is_not_finite_stops_the_run(make_run: Callable[..., Any], terms: Loss) -> None:
    run = make_run()
    run.relabel("val", 3, energy=np.nan)
    with pytest.raises(InputError, match=r"The validation loss of epoch 1 is nan\..*made\.xyz frame 11") as caught:
        run.fit(terms)
    path = run.folder / "nonfinite.extxyz"
    assert str(path) in str(caught.value)
    assert "made.xyz frame 11" in [atoms.info["source"] for atoms in ase.io.iread(path)]
    assert not (run.folder / "checkpoints").exists()
    assert len((run.folder / "metrics.csv").read_text().splitlines()) == 1
