"""Errors of a data set do not depend on its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nequip_core.potential import Potential
from nequip_core.training.loss import Loss
from nequip_core.training.metrics import NAMES, Metrics

CPU = torch.device("cpu")


def computed(run: Any, terms: Loss, size: int) -> dict[str, float | None]:
    potential, metrics = Potential(run.model).eval(), Metrics(terms)
    for begin in range(0, len(run.train), size):
        batch = run.train.batch(range(len(run.train))[begin : begin + size])
        metrics.update(potential(batch.graph), batch)
    return metrics.compute(CPU)


def test_batches_do_not_matter(make_run: Callable[..., Any], terms: Loss) -> None:
    run = make_run()
    whole = computed(run, terms, 8)
    assert set(whole) == {"loss", *NAMES}
    for size in (1, 3):
        assert computed(run, terms, size) == pytest.approx(whole, rel=1e-13)


def test_of_a_whole_batch_they_are_what_their_names_say(make_run: Callable[..., Any], terms: Loss) -> None:
    run = make_run()
    batch = run.train.batch(range(len(run.train)))
    prediction = Potential(run.model).eval()(batch.graph)
    found = computed(run, terms, 8)
    difference = prediction.forces - batch.labels.forces
    assert found["forces_mae"] == pytest.approx(difference.abs().mean().item(), rel=1e-13)
    assert found["forces_rmse"] == pytest.approx(difference.square().mean().sqrt().item(), rel=1e-13)
    per_atom = (prediction.energy - batch.labels.energy) / batch.graph.structure_ptr.diff()
    assert found["energy_per_atom_mae"] == pytest.approx(per_atom.abs().mean().item(), rel=1e-13)
    assert found["loss"] == pytest.approx(terms(prediction, batch).item(), rel=1e-13)


def test_nothing_is_none_not_zero(make_run: Callable[..., Any], terms: Loss) -> None:
    assert Metrics(terms).compute(CPU) == {"loss": 0.0} | dict.fromkeys(NAMES)
