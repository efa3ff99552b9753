"""How long steps take, and how much of that is waiting for data; nobody waits for the device to know it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler

from nequip_core.training.module import TrainingModule

FETCH = "train_dataloader_next"
"""End of the name by which Lightning tells a profiler that it takes the next training batch."""


class Totals(NamedTuple):
    """Sums over all steps of this process so far.

    Attributes:
        steps: their number.
        seconds: from the start of an epoch to the end of its last step; validation and checkpoints do not count.
        waited: seconds of these in which the next batch was not there yet.
    """

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def since(self, earlier: Totals) -> tuple[float | None, float | None]:
        """Mean seconds of a step since then, and the share of them that was waiting; None without steps."""
        steps, seconds, waited = (now - then for now, then in zip(self, earlier, strict=True))
        return (seconds / steps, waited / seconds if seconds else 0.0) if steps else (None, None)


class FetchTime(Profiler):
    """Lightning's profiler interface, which brackets the wait for the next batch; everything else is let pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._start = 0.0

    def start(self, action_name: str) -> None:
        """An action begins."""
        if action_name.endswith(FETCH):
            self._start = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """It is over."""
        if action_name.endswith(FETCH):
            self.seconds += time.perf_counter() - self._start


class Pace(Callback):
    """Counts steps, their seconds and the wait for data.

    On a device that works on its own the time of one step on the host says nothing; the mean over many does, since
    losses are read from the device now and then, and when an epoch's last step is launched.

    Attributes:
        fetch: the trainer's profiler.
        totals: so far.
    """

    def __init__(self) -> None:
        self.fetch = FetchTime()
        self.totals = Totals()
        self._last = (0.0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that goes on in mid-epoch begins no epoch."""
        self._mark()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What came before is no step."""
        self._mark()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One more step. What the device has not done when an epoch ends belongs to its steps."""
        if trainer.is_last_batch:
            assert isinstance(pl_module, TrainingModule)
            pl_module.finish_losses()
        then, waited = self._last
        self._mark()
        steps, seconds, waits = self.totals
        self.totals = Totals(steps + 1, seconds + self._last[0] - then, waits + self._last[1] - waited)

    def _mark(self) -> None:
        self._last = (time.perf_counter(), self.fetch.seconds)
