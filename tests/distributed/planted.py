"""Lightning callbacks that count, or plant a fault; `nequip train` loads them by name (training.callbacks)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback

COLLECTIVES = ("all_reduce", "broadcast", "all_gather", "reduce", "barrier", "all_gather_object", "reduce_scatter")


class Count(Callback):
    """Writes what each optimizer step exchanges and when; constructing DistributedDataParallel is an error."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.events: list[str] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        for name in COLLECTIVES:
            self._wrap(name)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("DistributedDataParallel was constructed")

        torch.nn.parallel.DistributedDataParallel.__init__ = refuse

    def _wrap(self, name: str) -> None:
        function: Callable[..., Any] = getattr(dist, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.events.append(name)
            return function(*args, **kwargs)

        setattr(dist, name, wrapped)

    def on_train_batch_start(self, *args: Any) -> None:
        self.events.append("step")

    def on_after_backward(self, *args: Any) -> None:
        self.events.append("backward")

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.events.append("optimizer")

    def on_train_batch_end(self, *args: Any) -> None:
        self.events.append("end")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        (self.folder / f"events-{trainer.global_rank}.json").write_text(json.dumps(self.events))


class At(Callback):
    """Does something in one rank before one step."""

    def __init__(self, rank: int, step: int, what: str) -> None:
        self.rank, self.step, self.what = rank, step, what

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and trainer.global_step + 1 == self.step:
            ACTS[self.what](pl_module)


def bend(module: Any) -> None:
    """One bit of one weight."""
    weight = next(p for p in module.parameters() if p.dim() == 2)
    with torch.no_grad():
        weight.view(torch.int64)[0, 0] ^= 1


def fail(module: Any) -> None:
    raise ValueError("planted")


def poison(module: Any) -> None:
    """The loss of this rank becomes NaN."""
    before = module.loss_of
    module.loss_of = lambda batch: before(batch) * float("nan")


ACTS: dict[str, Callable[[Any], object]] = {
    "sleep": lambda module: time.sleep(600),
    "kill": lambda module: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda module: os.kill(os.getpid(), signal.SIGINT),
    "bend": bend,
    "fail": fail,
    "poison": poison,
}


class NoWaiting(Callback):
    """Between two readings of losses nothing may wait for the device."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + 1
        torch.cuda.set_sync_debug_mode("error" if self.first <= step <= self.last else "default")
        self.steps += self.first <= step <= self.last

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        assert self.steps == self.last - self.first + 1
