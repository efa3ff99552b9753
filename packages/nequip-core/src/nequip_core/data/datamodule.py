"""The data of a run, as Lightning takes it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from nequip_core.data.batch import Batch
from nequip_core.data.dataset import Dataset, Sample, make_batch
from nequip_core.data.loader import EvalSteps, TrainSteps
from nequip_core.structure import Ints


class DataModule(LightningDataModule):
    """Training and validation batches.

    Args:
        train: structures to train on.
        val: structures to validate on; may be empty.
        seed: of the order of batches.
        by: what ``size`` counts: structures, atoms or edges.
        size: of an optimizer step.
        eval_size: structures of a validation batch.
        workers: processes that make batches; 0: this one.
    """

    def __init__(
        self,
        train: Dataset,
        val: Dataset,
        *,
        seed: int = 0,
        by: str = "structures",
        size: int = 5,
        eval_size: int = 64,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.steps = TrainSteps(_sizes(train, by), size, seed)
        self.eval_size = eval_size
        self.workers = workers

    def train_dataloader(self) -> DataLoader[Sample]:
        """Steps of the current epoch, each one batch."""
        return self._loader(self.train, self.steps)

    def val_dataloader(self) -> DataLoader[Sample]:
        """All validation structures once."""
        return self._loader(self.val, EvalSteps(len(self.val), self.eval_size))

    def state_dict(self) -> dict[str, int]:
        """Where the order of batches is: the epoch, and its steps that are done."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        steps: Any = loop.epoch_loop.batch_progress.current
        return {"epoch": epochs.processed, "step": steps.processed if epochs.started > epochs.processed else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go there. Lightning makes the first iterator before it says which epoch it is in."""
        self.steps.seek(state_dict["epoch"], state_dict["step"])
        # Lightning looks for a state in the loader, where there is none, and warns.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning's hook."""
        return batch if device.type == "cpu" else batch.to(device)

    def _loader(self, dataset: Dataset, steps: TrainSteps | EvalSteps) -> DataLoader[Sample]:
        return DataLoader(
            dataset,  # type: ignore[arg-type]  # a map-style data set is anything with items and a length
            batch_sampler=steps,
            collate_fn=make_batch,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )


def _sizes(dataset: Dataset, by: str) -> Ints:
    """[structures] what each counts in a step."""
    return {"structures": np.ones(len(dataset), dtype=np.int64), "atoms": dataset.atoms, "edges": dataset.edges}[by]
