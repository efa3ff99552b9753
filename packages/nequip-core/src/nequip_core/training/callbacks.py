"""What happens beside the steps: tables, checkpoints, the progress bar, and the ways a run ends early."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from nequip_core.data.datamodule import DataModule
from nequip_core.errors import CheckError, InputError, NequipError
from nequip_core.files import atomic_write
from nequip_core.training.metrics import NAMES
from nequip_core.training.module import TrainingModule
from nequip_core.training.pace import Pace, Totals
from nequip_core.training.ranks import ONE, Ranks, Wish

METRICS = ("epoch", "step", "time_s", "lr", "train_loss", "val_loss", *(f"val_{name}" for name in NAMES))
"""Columns of metrics.csv; eV and Å. ``epoch`` and ``step``: how many are finished. Empty: nothing has that label."""

STEPS = ("epoch", "step", "time_s", "lr", "loss", "step_s", "data_wait")
"""Columns of steps.csv. ``time_s`` is the run's; ``step_s`` the mean seconds of a step since the row before, and
``data_wait`` the share of them in which the step waited for its batch."""


class StoppedError(NequipError):
    """A run that ended before its time, as it was asked to, with a checkpoint to go on from."""

    exit_code: ClassVar[int] = 0


class CtrlCError(StoppedError):
    """The same after Ctrl-C."""

    exit_code: ClassVar[int] = 130


class Table:
    """A CSV file to which rows are appended, each one flushed to the disk.

    Args:
        path: of the file.
        columns: its first line.
        key: column that grows from row to row.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], key: str) -> None:
        self.path = Path(path)
        self.columns = tuple(columns)
        self.key = key

    def begin(self, finished: int) -> None:
        """Keep the rows up to ``finished``: later ones are about to be computed again. A new table where there is none.

        Raises:
            InputError: the file has other columns.
        """
        rows: list[Mapping[str, str]] = []
        if finished and self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != self.columns:
                    raise InputError(
                        f"{self.path} has the columns {reader.fieldnames}, expected {list(self.columns)}. Move it "
                        "away, or start a new run with run.if_exists=new."
                    )
                # A row that was cut off by a kill lacks its last columns, which DictReader gives as None.
                rows = [row for row in reader if None not in row.values() and int(row[self.key]) <= finished]
        with atomic_write(self.path) as file:
            file.write(self._line(self.columns))
            file.writelines(self._line([row[name] for name in self.columns]) for row in rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """One more row. Numbers are written so that reading them gives the same number; None as nothing."""
        values = [row[name] for name in self.columns]
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._line(["" if value is None else value for value in values]))
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _line(values: Sequence[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()


class Clock(Callback):
    """Seconds of training, over all parts of a run that was resumed."""

    def __init__(self) -> None:
        self._before = 0.0
        self._start = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The seconds of the earlier parts."""
        self._before = state_dict["seconds"]


class MetricsTable(Callback):
    """metrics.csv, and the same for the other loggers: a row per validation.

    Args:
        path: of the file.
        clock: among the trainer's callbacks before this one.
    """

    def __init__(self, path: str | Path, clock: Clock) -> None:
        self.table = Table(path, METRICS, "epoch")
        self.clock = clock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop rows of epochs that are computed again."""
        if trainer.is_global_zero:
            self.table.begin(finished_epochs(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A row, if there was a validation."""
        module, epoch, step = training_module(pl_module), finished_epochs(trainer), trainer.global_step
        if not module.validated:
            return
        if trainer.is_global_zero:
            place = {"epoch": epoch, "step": step, "time_s": round(self.clock.seconds, 3)}
            self.table.append({**place, "lr": module.learning_rate, **module.metrics})
        values = {name: value for name, value in module.metrics.items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epoch, **values}, step)


class StepsTable(Callback):
    """steps.csv, and the same for the other loggers: a row every ``every`` steps.

    Args:
        path: of the file; None: the loggers only.
        clock: among the trainer's callbacks before this one.
        pace: likewise.
        every: steps between rows.
    """

    def __init__(self, path: str | Path | None, clock: Clock, pace: Pace, every: int) -> None:
        self.table = None if path is None else Table(path, STEPS, "step")
        self.clock = clock
        self.pace = pace
        self.every = every
        self._written = 0
        self._before = Totals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop rows of steps that are computed again."""
        self._written = trainer.global_step
        if self.table is not None and trainer.is_global_zero:
            self.table.begin(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A row, when it is time."""
        step = trainer.global_step
        if step % self.every or step == self._written:
            return
        self._written = step
        module = training_module(pl_module)
        module.finish_losses()
        step_s, data_wait = self.pace.totals.since(self._before)
        self._before = self.pace.totals
        logged = {"loss": module.losses.last, "lr": module.learning_rate, "step_s": step_s, "data_wait": data_wait}
        if self.table is not None and trainer.is_global_zero:
            place = {"epoch": trainer.current_epoch + 1, "step": step, "time_s": round(self.clock.seconds, 3)}
            self.table.append(place | logged)
        values = {f"step/{name}": value for name, value in logged.items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(values, step)


class Checkpoints(Checkpoint):
    """last.ckpt, best.ckpt and epoch-000100.ckpt, written when an epoch has ended.

    Lightning calls callbacks of this class after all others, when the epoch's learning rate is set.

    Args:
        folder: of the files; made when it is missing.
        every: epochs between writes of last.ckpt; the last epoch is always written.
        keep_every: epochs between copies that are kept; None: none.

    Attributes:
        due: write last.ckpt at the end of this epoch, whatever ``every`` says.
    """

    def __init__(self, folder: str | Path, *, every: int = 1, keep_every: int | None = None) -> None:
        self.folder = Path(folder)
        self.every = every
        self.keep_every = keep_every
        self.due = False
        self.best: float | None = None
        self.best_epoch: int | None = None

    @property
    def last_path(self) -> Path:
        """Of the checkpoint to resume from."""
        return self.folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        """Of the one with the smallest monitored metric."""
        return self.folder / "best.ckpt"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is due.

        last.ckpt comes last: a run that is killed between two files repeats the epoch and writes them all again.
        """
        module, epoch = training_module(pl_module), finished_epochs(trainer)
        files = []
        if module.validated and (self.best is None or module.monitored() < self.best):
            self.best, self.best_epoch = module.monitored(), epoch
            files.append(self.best_path)
        if self.keep_every is not None and epoch % self.keep_every == 0:
            files.append(self.folder / f"epoch-{epoch:06d}.ckpt")
        ends = trainer.should_stop or epoch == trainer.max_epochs
        if epoch % self.every == 0 or ends or self.due:
            files.append(self.last_path)
        self.write(trainer, files)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run in which no validation was due has no best one: the last stands for it."""
        if not self.best_path.is_file() and self.last_path.is_file() and trainer.is_global_zero:
            copy_file(self.last_path, self.best_path)

    def write(self, trainer: Trainer, files: Sequence[Path]) -> None:
        """The state of this moment, once, and copies of it.

        Raises:
            InputError: the disk is full, or the folder can not be written to; files that were there stay as they were.
        """
        if not files:
            return
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        first, *others = files
        trainer.save_checkpoint(first, weights_only=False)
        if trainer.is_global_zero:
            for other in others:
                copy_file(first, other)

    def state_dict(self) -> dict[str, Any]:
        """The best metric so far and its epoch."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


class Patience(Callback):
    """Ends the run after some validations in which the monitored metric got no better.

    Args:
        validations: how many.
    """

    def __init__(self, validations: int) -> None:
        self.validations = validations
        self.best: float | None = None
        self.waited = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare."""
        module = training_module(pl_module)
        if not module.validated:
            return
        value = module.monitored()
        if self.best is None or value < self.best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited >= self.validations:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The best value and the validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]


class StepLimit(Callback):
    """Ends the run after a number of steps, with a validation even in mid-epoch.

    In the place of Lightning's max_steps, with which a run that is resumed between epochs would leave one out.

    Args:
        steps: how many, in all.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that is resumed may be at its end."""
        trainer.should_stop = trainer.global_step >= self.steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class EarlyEnd(Callback):
    """Ctrl-C and ``max_time``: the run goes on to the end of its step, writes last.ckpt and raises.

    A second Ctrl-C stops at once, without a checkpoint. Several ranks end after the same step: each tells its wish with
    its gradients, and what all have wished is known where losses are read.

    Args:
        checkpoints: writes it.
        max_time: seconds of this process; None: no limit.
        ranks: that end together.
    """

    def __init__(self, checkpoints: Checkpoints, *, max_time: float | None = None, ranks: Ranks = ONE) -> None:
        self.checkpoints = checkpoints
        self.max_time = max_time
        self.ranks = ranks
        self._start = time.monotonic()
        self._pressed = False
        self._agreed = Wish.GO_ON
        self._previous: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen. Lightning would answer KeyboardInterrupt with exit code 1, wherever in a step it came."""
        self._pressed, self._agreed = False, Wish.GO_ON
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no more."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self._restore()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop in mid-epoch. After the last step of an epoch its validation comes first."""
        module = training_module(pl_module)
        self._agreed = self._wish() if self.ranks.size == 1 else module.losses.wish
        if self._agreed and not (trainer.is_last_batch or trainer.should_stop):
            self.checkpoints.write(trainer, [self.checkpoints.last_path])
            self._stop(f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the epoch's checkpoint written after this hook: from a later one Lightning could not resume."""
        self._agreed = max(self.ranks.gather(self._wish(), "the question whether to end"))
        self.checkpoints.due = self._agreed > Wish.GO_ON

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between epochs."""
        if self._agreed:
            self._stop(f"after epoch {trainer.current_epoch}, step {trainer.global_step}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the other ranks in this step."""
        training_module(pl_module).wish = self._wish()

    def _press(self, signum: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise CtrlCError("Stopped at once by a second Ctrl-C. The last checkpoint is from before.")
        self._pressed = True
        if self.ranks.is_first:
            Console(stderr=True).print("Ctrl-C: stopping after this step. Press it again to stop at once.")

    def _wish(self) -> Wish:
        if self._pressed:
            return Wish.CTRL_C
        over = self.max_time is not None and time.monotonic() - self._start > self.max_time
        return Wish.MAX_TIME if over else Wish.GO_ON

    def _stop(self, when: str) -> None:
        pressed = self._agreed is Wish.CTRL_C
        kind = CtrlCError if pressed else StoppedError
        why = "by Ctrl-C" if pressed else f"by trainer.max_time ({self.max_time:g} s)"
        raise kind(f"Stopped {why} {when}. The same command goes on from {self.checkpoints.last_path}.")

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class Position(Callback):
    """Tells the other ranks where this one is.

    Args:
        ranks: of the run.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step."""
        self.ranks.at(f"step {trainer.global_step + 1}")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of validation."""
        self.ranks.at(f"batch {batch_idx + 1} of the validation after step {trainer.global_step}")


class SameWeights(Callback):
    """Checks that all ranks have the same weights, bit for bit, at the start and every ``every`` steps.

    Args:
        ranks: of the run.
        every: steps between checks.
    """

    def __init__(self, ranks: Ranks, every: int) -> None:
        self.ranks = ranks
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Weights are new, or those of a checkpoint."""
        self._check(pl_module, "at the start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check, when it is time."""
        if trainer.global_step % self.every == 0:
            self._check(pl_module, f"after step {trainer.global_step}")

    def _check(self, module: LightningModule, when: str) -> None:
        names, parameters = zip(*module.named_parameters(), strict=True)
        table = self.ranks.gather(torch.stack([checksum(p) for p in parameters]).tolist(), "the check of the weights")
        for rank, row in enumerate(table):
            different = [name for name, mine, first in zip(names, row, table[0], strict=True) if mine != first]
            if different:
                raise CheckError(
                    f"The weights of rank {rank} are not those of rank 0 {when}: {different[0]} and "
                    f"{len(different) - 1} others of {len(names)}. Expected the same bits. Look for parts of the model "
                    "or of the optimizer that depend on the rank, and for broken hardware. No checkpoint has been "
                    "written since; the same command goes on from the last one."
                )


def checksum(tensor: Tensor) -> Tensor:
    """A whole number that changes with any bit of a tensor, and with the order of its elements; int64."""
    whole = {4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().reshape(-1).view(whole).long()
    return (bits * (2 * torch.arange(len(bits), device=bits.device) + 1)).sum()


class ProgressLines(ProgressBar):
    """A bar for the steps of an epoch, in a terminal; and a line per validation, everywhere.

    Args:
        console: where to print.
        pace: among the trainer's callbacks before this one.
    """

    REFRESH = 0.5
    """Seconds between drawings, so that the bar costs nothing beside quick steps."""

    def __init__(self, console: Console | None = None, pace: Pace | None = None) -> None:
        super().__init__()
        self.console = console if console is not None else Console(stderr=True)
        self.pace = pace if pace is not None else Pace()
        self._before = Totals()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._drawn = 0.0
        self._enabled = True

    def disable(self) -> None:
        """Lightning silences all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """The opposite."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new bar."""
        if not (self._enabled and self.console.is_terminal):
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("")
            self._bar.start()
        self._bar.reset(
            self._task, total=steps_of_epoch(trainer), description=_epoch(trainer, trainer.current_epoch + 1)
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, not more often than can be seen."""
        now = time.monotonic()
        if self._bar is not None and now - self._drawn > self.REFRESH:
            self._drawn = now
            self._bar.update(self._task, completed=batch_idx + 1)
            self._bar.refresh()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A line, if there was a validation."""
        module = training_module(pl_module)
        if self._enabled and module.validated:
            self.console.print(summary(trainer, module, *self.pace.totals.since(self._before)), highlight=False)
            self._before = self.pace.totals

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """No bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


SHOWN = (
    ("energy_per_atom_mae", "energy MAE", "meV/atom"),
    ("forces_mae", "forces MAE", "meV/Å"),
    ("stress_mae", "stress MAE", "meV/Å³"),
)
"""Errors of a line of progress."""


def summary(trainer: Trainer, module: TrainingModule, step_s: float | None, data_wait: float | None) -> str:
    """A line about the last validation, and the pace of the steps before it."""
    metrics = module.metrics
    errors = [
        f"{name} {1000 * value:.3g} {unit}" for key, name, unit in SHOWN if (value := metrics[f"val_{key}"]) is not None
    ]
    losses = [f"{name} {value:.4g}" for name in ("train_loss", "val_loss") if (value := metrics[name]) is not None]
    pace = [] if step_s is None else [f"{1000 * step_s:.3g} ms/step", f"waiting {data_wait:.0%}"]
    rate = f"lr {module.learning_rate:.3g}"
    return "  ".join((_epoch(trainer, finished_epochs(trainer)), *losses, *errors, rate, *pace))


def finished_epochs(trainer: Trainer) -> int:
    """Epochs whose steps and validation are over; right inside the hooks at an epoch's end too."""
    progress: Any = trainer.fit_loop.epoch_progress
    return int(progress.current.processed)


def steps_of_epoch(trainer: Trainer) -> int:
    """Steps of the current epoch; Lightning does not know how many there are."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set when a run begins
    assert isinstance(data, DataModule)
    return data.steps.count


def training_module(module: LightningModule) -> TrainingModule:
    """The module that these callbacks are for."""
    assert isinstance(module, TrainingModule)
    return module


def copy_file(source: Path, target: Path) -> None:
    """A copy that appears whole or not at all."""
    with source.open("rb") as original, atomic_write(target, "wb") as copy:
        shutil.copyfileobj(original, copy)


def _epoch(trainer: Trainer, number: int) -> str:
    limit = trainer.max_epochs
    return f"epoch {number}" if limit is None or limit < 0 else f"epoch {number}/{limit}"
