"""Batches as Lightning asks for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from lightning import LightningModule, Trainer
from torch import Tensor

from nequip_core.data.batch import Batch
from nequip_core.data.datamodule import DataModule
from nequip_core.data.dataset import Dataset
from nequip_core.data.ghost import ATOMS, Ghost, round_up
from nequip_core.data.loader import plan_epoch
from nequip_core.neighbors import make_vesin
from nequip_core.structure import Structure, TypeMap


def make(number: int | list[int]) -> Dataset:
    """Chains of hydrogen of so many atoms; a number: so many molecules of two."""
    lengths = [2] * number if isinstance(number, int) else number
    structures = [
        replace(
            Structure.from_ase(Atoms(f"H{atoms}", [[0, 0, (0.7 + 0.01 * n) * z] for z in range(atoms)])),
            energy=float(n),
        )
        for n, atoms in enumerate(lengths)
    ]
    return Dataset(structures, TypeMap(("H",), ("H",)), np.full((1, 1), 2.0), make_vesin(2.0))


class Recorder(LightningModule):
    """Notes the structures that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: dict[int, list[list[int]]] = {}
        self.validated: list[int] = []

    def training_step(self, batches: list[Batch]) -> Tensor:
        self.trained.setdefault(self.current_epoch, []).append([n for one in batches for n in one.ids.tolist()])
        return self.weight * sum(one.labels.energy.sum().float() for one in batches)

    def validation_step(self, batch: Batch) -> None:
        self.validated += batch.ids.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder: Path, workers: int, epochs: int, data: Dataset | None = None, **keys: Any) -> Recorder:
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    options = {"seed": 3, "size": 4, "eval_size": 2, "workers": workers} | keys
    trainer.fit(recorder, DataModule(data or make(11), make(5), **options))
    return recorder


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_its_own_order(tmp_path: Path, workers: int) -> None:
    recorder = fit(tmp_path, workers, epochs=3)
    ones = np.ones(11, dtype=np.int64)
    assert recorder.trained == {epoch: plan_epoch(ones, 4, seed=3, epoch=epoch) for epoch in range(3)}
    assert recorder.validated == [0, 1, 2, 3, 4] * 3


def test_sizes_of_training_batches_are_rounded_up() -> None:
    data = make([5, 9, 14, 20, 27, 35, 44, 50, 57, 63])
    module = DataModule(data, data, size=4, eval_size=4, ghost=Ghost(1.0), rounded=True)
    for batches in module.train_dataloader():
        for batch in batches:
            atoms, edges = batch.graph.types.shape[0], batch.graph.edge_shift.shape[0]
            assert (atoms, edges) == (round_up(atoms), round_up(edges))
    exact = [batch.graph.types.shape[0] for batch in module.val_dataloader()]
    assert exact == [max(ATOMS, int(data.atoms[n : n + 4].sum()) + 1) for n in (0, 4, 8)]


def test_usual_edges() -> None:
    data = make([5, 5, 5, 5, 5, 12])
    edges = int(data.edges.sum())
    assert DataModule(data, data, size=2).usual_edges() == pytest.approx(edges / 3)
    assert DataModule(data, data, size=2, limit=1).usual_edges() == pytest.approx(edges / 3)
    assert DataModule(data, data, size=2, ranks=2).usual_edges() == pytest.approx(edges / 6)
    assert DataModule(data, data, size=6, max_edges=10).usual_edges() == 10


def test_sizes_by_atoms_and_edges() -> None:
    for by, expected in (("atoms", 3), ("edges", 3), ("structures", 6)):
        loader = DataModule(make(11), make(2), by=by, size=6).train_dataloader()
        assert max(len(batch.ids) for (batch,) in loader) == expected


def test_epochs_of_different_numbers_of_steps(tmp_path: Path) -> None:
    """By atoms the order decides how many steps an epoch has; Lightning alone would hold all to the first's."""
    data = make([2, 3, 5, 7, 4, 2, 6, 3])
    recorder = fit(tmp_path, 0, epochs=6, data=data, by="atoms", size=9)
    expected = {epoch: plan_epoch(data.atoms, 9, seed=3, epoch=epoch) for epoch in range(6)}
    assert len({len(steps) for steps in expected.values()}) > 1
    assert max(len(steps) for steps in expected.values()) > len(expected[0])
    assert recorder.trained == expected


@pytest.mark.parametrize(("limit", "steps"), [(2, 2), (0.5, 1), (1.0, 3)])
def test_part_of_an_epoch(tmp_path: Path, limit: float, steps: int) -> None:
    recorder = fit(tmp_path, 0, epochs=2, limit=limit)
    assert [len(epoch) for epoch in recorder.trained.values()] == [steps, steps]


def test_micro_batches_hold_so_many_edges() -> None:
    data = make([5, 5, 5, 5, 5, 12])
    edges = int(data.edges[0])
    for batches in DataModule(data, data, size=6, max_edges=2 * edges).train_dataloader():
        assert sorted(n for one in batches for n in one.ids.tolist()) == list(range(6))
        assert len(batches) > 3
        for one in batches:
            assert one.ids.tolist() == [5] or one.graph.edge_index.shape[1] <= 2 * edges
            assert one.denominators.energy.item() == 6
    whole = DataModule(data, data, eval_size=6, max_edges=2 * edges).val_dataloader()
    assert [n for one in whole for n in one.ids.tolist()] == list(range(6))
