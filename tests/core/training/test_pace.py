"""Times of steps, and of waiting for data."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from typing import Any

import pytest

from nequip_core.data.datamodule import DataModule
from nequip_core.training import callbacks, pace
from nequip_core.training.loss import Loss
from nequip_core.training.pace import FetchTime, Totals


def test_totals_since() -> None:
    before, now = Totals(10, 5.0, 1.0), Totals(14, 7.0, 1.5)
    assert now.since(before) == (0.5, 0.25)
    assert now.since(now) == (None, None)
    assert Totals(1, 0.0, 0.0).since(Totals()) == (0.0, 0.0)


def test_only_the_fetch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    profiler = FetchTime()
    with profiler.profile("run_training_batch"):
        pass
    with profiler.profile("[_TrainingEpochLoop].train_dataloader_next"):
        pass
    assert profiler.seconds == 2.0


@pytest.mark.parametrize(("slow", "least", "most"), [("data", 0.5, 1.0), ("step", 0.0, 0.5), ("device", 0.0, 0.5)])
def test_steps_say_how_long_they_took_and_waited(
    make_run: Callable[..., Any], terms: Loss, monkeypatch: pytest.MonkeyPatch, slow: str, least: float, most: float
) -> None:
    run = make_run()
    trainer, module, data = run.parts(terms, max_epochs=3, check_val_every_n_epoch=2)
    nap = 0.3  # long beside what a step takes on a busy machine
    if slow == "data":
        loader = DataModule.train_dataloader

        def sleepy(self: DataModule) -> Any:
            made: Any = loader(self)
            collate = made.collate_fn

            def slowly(samples: Any) -> Any:
                time.sleep(nap)
                return collate(samples)

            made.collate_fn = slowly
            return made

        monkeypatch.setattr(DataModule, "train_dataloader", sleepy)
    elif slow == "device":  # steps are launched at once; who reads a loss waits for all of them
        step, finish, launched = module.training_step, module.finish_losses, []
        monkeypatch.setattr(module, "training_step", lambda *args: (launched.append(nap), step(*args))[1])

        def wait() -> None:
            time.sleep(sum(launched))
            launched.clear()
            finish()

        monkeypatch.setattr(module, "finish_losses", wait)
    else:
        step = module.training_step
        monkeypatch.setattr(module, "training_step", lambda *args: (time.sleep(nap), step(*args))[1])
    write = callbacks.Checkpoints.write
    monkeypatch.setattr(callbacks.Checkpoints, "write", lambda *args: (time.sleep(2.0), write(*args))[1])
    trainer.fit(module, datamodule=data)
    with (run.folder / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    for row in rows:
        # Lightning fetches the very first batch before training begins; checkpoints, two seconds each, do not count.
        assert 0.6 * nap < float(row["step_s"]) < nap + 0.6
        assert least <= float(row["data_wait"]) <= most
