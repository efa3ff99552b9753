"""Losses are read late, and lose nothing by it."""

from __future__ import annotations

import math
from pathlib import Path

import ase.io
import pytest
import torch

from nequip_core.structure import Structure
from nequip_core.training.nonfinite import LossRecord, offending_to


@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_mean_does_not_depend_on_when_it_was_read(every: int) -> None:
    values = torch.rand(10, dtype=torch.float64)
    expected = 0.0
    for value in values.tolist():
        expected += value
    record = LossRecord()
    record.every = every
    for value in values:
        assert record.add(value, torch.tensor([0])) is None
    assert record.read() is None
    assert record.mean() == expected / 10
    assert record.last == values[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_one_is_found(bad: float) -> None:
    record = LossRecord()
    record.every = 4
    found = [record.add(torch.tensor(value), torch.tensor([n, n + 10])) for n, value in enumerate([1, 1, bad, bad])]
    assert found[:3] == [None] * 3
    assert found[3] is not None
    assert found[3].ids == [2, 12]
    assert record.steps == 3


def test_nothing_read_is_no_mean() -> None:
    assert LossRecord().mean() is None


def test_the_file_holds_the_structures(tmp_path: Path, structures: list[Structure]) -> None:
    path = tmp_path / "bad.extxyz"
    sentence = offending_to(path, lambda ids: [structures[n] for n in ids])([4, 0])
    assert "made.xyz:4, made.xyz:0" in sentence
    frames = ase.io.read(path, ":")
    assert [len(frame) for frame in frames] == [len(structures[4]), len(structures[0])]
    assert frames[1].get_potential_energy() == pytest.approx(structures[0].energy)
