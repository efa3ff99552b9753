"""The data of a run, as Lightning takes it."""

from __future__ import annotations

import signal
import warnings
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from nequip_core.data.batch import Batch
from nequip_core.data.dataset import Dataset
from nequip_core.data.ghost import Ghost
from nequip_core.data.loader import Batches, EvalSteps, Steps, TrainLoader, TrainSteps
from nequip_core.data.packed import Packed
from nequip_core.structure import Ints


class DataModule(LightningDataModule):
    """Training and validation batches.

    Args:
        train: structures to train on.
        val: structures to validate on; may be empty.
        seed: of the order of batches.
        by: what ``size`` counts: structures, atoms or edges.
        size: of an optimizer step, on all devices together.
        eval_size: structures of a validation batch.
        max_edges: of one device at a time; a larger share of a step is cut into micro-batches. None: no limit.
        limit: of the steps of an epoch: a number of them, or a fraction.
        workers: processes that make batches; 0: this one.
        ghost: appended to every batch, for compiled steps.
        rounded: whether the ghost rounds the sizes of training batches up, for steps that are recorded.
        rank: of this process.
        ranks: how many share every step.
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
        max_edges: int | None = None,
        limit: float = 1.0,
        workers: int = 0,
        ghost: Ghost | None = None,
        rounded: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.steps = TrainSteps(_sizes(train, by), size, seed, limit)
        self.eval_size = eval_size
        self.max_edges = max_edges
        self.workers = workers
        self.ghost, self.rounded = ghost, rounded
        self.rank, self.ranks = rank, ranks
        self.work = train.atoms if by == "atoms" else train.edges

    def train_dataloader(self) -> DataLoader[list[Batch]]:
        """Steps of the current epoch, each a list of this rank's micro-batches."""
        source = Steps(self.train, self.max_edges, self.rank, self.ranks, self.work)
        return self._loader(source, self.steps, self.rounded)

    def val_dataloader(self) -> DataLoader[Batch]:
        """This rank's validation structures once."""
        steps = EvalSteps(self.val.edges, self.eval_size, self.max_edges, self.rank, self.ranks)
        return self._loader(Batches(self.val), steps)

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

    def transfer_batch_to_device(
        self, batch: Packed | Batch | list[Packed] | list[Batch], device: torch.device, dataloader_idx: int
    ) -> Batch | list[Batch]:
        """Lightning's hook."""
        return [_moved(piece, device) for piece in batch] if isinstance(batch, list) else _moved(batch, device)

    def usual_structures(self) -> float:
        """That a device computes in a step of training, on average."""
        return sum(len(step) for step in self.steps.steps) / self.steps.count / self.ranks

    def usual_edges(self) -> float:
        """That a device computes at a time, on average; the ghost's not among them."""
        edges = self.usual_structures() * float(self.train.edges.mean())
        return edges if self.max_edges is None else min(edges, self.max_edges)

    def _loader(self, source: Steps | Batches, steps: TrainSteps | EvalSteps, rounded: bool = False) -> DataLoader[Any]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        # A worker knows no device; its batches are pinned when they are here.
        way: Way = "to this process" if self.workers else "to a device" if on_cuda else "none"
        kind = TrainLoader if isinstance(steps, TrainSteps) else DataLoader
        return kind(
            source,  # type: ignore[arg-type]  # its items are named by the sampler
            sampler=steps,
            batch_size=None,
            collate_fn=partial(_finished, self.ghost, rounded, way),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            # From other memory a copy to the device would wait for the steps before it.
            pin_memory=on_cuda,
            worker_init_fn=_outlive_signals,
        )


WORKERS_TIME = 30
"""Seconds that a worker stays after SIGTERM."""


def _outlive_signals(worker: int) -> None:
    """Ctrl-C in a terminal and SIGTERM of a scheduler reach the workers too, but the run still finishes its step.

    It ends its workers itself. One that it asks by SIGTERM, having waited in vain, ends as well, if late.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(WORKERS_TIME))


Way = Literal["none", "to this process", "to a device"]
"""That a batch goes from where it is made."""


def _finished(
    ghost: Ghost | None, rounded: bool, way: Way, made: Batch | list[Batch]
) -> Packed | Batch | list[Packed | Batch]:
    """What a loader gives out; in a worker, if there are any. What leaves this process or the host is packed."""

    def finish(batch: Batch) -> Packed | Batch:
        whole = batch if ghost is None else ghost(batch, rounded=rounded)
        return whole if way == "none" else Packed.of(whole, pinned=way == "to a device")

    return [finish(batch) for batch in made] if isinstance(made, list) else finish(made)


def _moved(batch: Packed | Batch, device: torch.device) -> Batch:
    return batch.unpack(device) if isinstance(batch, Packed) else batch.to(device)


def _sizes(dataset: Dataset, by: str) -> Ints:
    """[structures] what each counts in a step."""
    return {"structures": np.ones(len(dataset), dtype=np.int64), "atoms": dataset.atoms, "edges": dataset.edges}[by]
