"""Batches as Lightning asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from lightning import LightningModule, Trainer
from torch import Tensor

from nequip_core.data.batch import Batch
from nequip_core.data.datamodule import DataModule
from nequip_core.data.dataset import Dataset
from nequip_core.data.loader import plan_epoch
from nequip_core.neighbors import make_vesin
from nequip_core.structure import Structure, TypeMap


def make(number: int) -> Dataset:
    structures = [
        Structure(**{**vars(Structure.from_ase(Atoms("H2", [[0, 0, 0], [0, 0, 0.7 + 0.01 * n]]))), "energy": float(n)})
        for n in range(number)
    ]
    return Dataset(structures, TypeMap(("H",), ("H",)), np.full((1, 1), 2.0), make_vesin(2.0))


class Recorder(LightningModule):
    """Notes the structures that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: dict[int, list[list[int]]] = {}
        self.validated: list[int] = []

    def training_step(self, batch: Batch) -> Tensor:
        self.trained.setdefault(self.current_epoch, []).append(batch.ids.tolist())
        return self.weight * batch.labels.energy.sum().float()

    def validation_step(self, batch: Batch) -> None:
        self.validated += batch.ids.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder: Path, workers: int, epochs: int) -> Recorder:
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
    trainer.fit(recorder, DataModule(make(11), make(5), seed=3, size=4, eval_size=2, workers=workers))
    return recorder


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_its_own_order(tmp_path: Path, workers: int) -> None:
    recorder = fit(tmp_path, workers, epochs=3)
    ones = np.ones(11, dtype=np.int64)
    assert recorder.trained == {epoch: plan_epoch(ones, 4, seed=3, epoch=epoch) for epoch in range(3)}
    assert recorder.validated == [0, 1, 2, 3, 4] * 3


def test_sizes_by_atoms_and_edges() -> None:
    for by, expected in (("atoms", 3), ("edges", 3), ("structures", 6)):
        loader = DataModule(make(11), make(2), by=by, size=6).train_dataloader()
        assert max(len(batch.ids) for batch in loader) == expected
