"""The Lightning module in short runs: what it reports, averages, writes and how it goes on."""

from __future__ import annotations

import csv
import os
import random
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from nequip_core.errors import ConfigError, InputError
from nequip_core.export.artifact import load_model
from nequip_core.export.package import Members, read_package
from nequip_core.training import loss, optimizers
from nequip_core.training.callbacks import CtrlCError, StoppedError
from nequip_core.training.metrics import Metrics
from nequip_core.training.module import random_state, set_random_state

MakeRun = Callable[..., Any]

TIMES = {"time_s", "step_s", "data_wait"}
"""Columns that no two runs have in common."""


def rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file, without times."""
    with path.open() as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def last(run: Any) -> Members:
    return read_package(run.folder / "checkpoints" / "last.ckpt", training=True)


def assert_same(run: Any, other: Any) -> None:
    """Tables, weights, averages and optimizer state are equal bit for bit."""
    for name in ("metrics.csv", "steps.csv"):
        assert rows(run.folder / name) == rows(other.folder / name)
    one, two = last(run), last(other)
    for tensors, others in (
        (one.weights, two.weights),
        (one.training.raw, two.training.raw),
        (one.training.optimizer_tensors, two.training.optimizer_tensors),
    ):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert one.metrics == two.metrics
    assert one.training.state["scheduler"] == two.training.state["scheduler"]
    assert one.manifest == two.manifest


class PressCtrlC(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"ema_decay": None, "scheduler": optimizers.none},
    {"scheduler": partial(OneCycleLR, max_lr=0.02, total_steps=20), "interval": "step"},
    {"max_steps": 12},
]


@pytest.mark.parametrize("keys", VARIANTS, ids=["plateau", "no_average", "one_cycle", "max_steps"])
def test_resume_at_epoch_end_is_bitwise(make_run: MakeRun, terms: loss.Loss, keys: dict[str, Any]) -> None:
    straight, halves = make_run("straight"), make_run("halves")
    straight.fit(terms, **keys)
    halves.fit(terms, **keys | {"max_epochs": 2} | ({"max_steps": 6} if "max_steps" in keys else {}))
    assert len(rows(halves.folder / "metrics.csv")) == 2
    make = make_run("other_weights_at_start")
    halves.model.load_state_dict({k: torch.full_like(v, 0.5) for k, v in make.model.state_dict().items()})
    halves.fit(terms, resume=True, **keys)
    assert [row["epoch"] for row in rows(straight.folder / "metrics.csv")] == ["1", "2", "3", "4"]
    assert_same(straight, halves)


@pytest.mark.parametrize(("step", "every"), [(0, 1), (2, 1), (2, 3), (4, 1), (4, 3)])
def test_ctrl_c_writes_a_checkpoint_and_goes_on_bitwise(
    make_run: MakeRun, terms: loss.Loss, step: int, every: int
) -> None:
    # Three steps per epoch: after the first, after the last of an epoch whose checkpoint is due or not, in mid-epoch.
    straight, stopped = make_run("straight"), make_run("stopped")
    straight.fit(terms, max_epochs=3)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(CtrlCError, match="Ctrl-C") as caught:
        stopped.fit(terms, max_epochs=3, every=every, more=[PressCtrlC(step)])
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert last(stopped).training.state["global_step"] == step + 1
    stopped.fit(terms, max_epochs=3, every=every, resume=True)
    assert_same(straight, stopped)


def test_a_second_ctrl_c_stops_at_once(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()

    class PressTwice(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(CtrlCError, match="at once"):
        run.fit(terms, more=[PressTwice()])
    assert not (run.folder / "checkpoints").exists()


def test_max_time_stops_with_a_checkpoint_and_exit_code_0(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    with pytest.raises(StoppedError, match="max_time") as caught:
        run.fit(terms, max_time=0.0)
    assert caught.value.exit_code == 0
    assert last(run).training.state["global_step"] == 1


def test_kill_between_the_row_and_the_checkpoint_leaves_no_double_row(make_run: MakeRun, terms: loss.Loss) -> None:
    straight, killed = make_run("straight"), make_run("killed")
    straight.fit(terms, max_epochs=3)
    killed.fit(terms, max_epochs=1)
    with (killed.folder / "metrics.csv").open("a") as file:
        file.write("2,6,0.1,0.5,1,1,1,1,1,1,1,1,1,1\n3,9,0.2")
    killed.fit(terms, max_epochs=3, resume=True)
    assert_same(straight, killed)


def test_validation_uses_the_average_and_leaves_the_weights(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    module = run.fit(terms, ema_decay=0.5, max_epochs=2)
    members = last(run)
    raw = module.potential.model.state_dict()
    assert all(torch.equal(raw[name], t) for name, t in members.training.raw.items())
    assert not all(torch.equal(raw[name], t) for name, t in members.weights.items())

    folder = run.folder
    for weights, same in (("ema", True), ("raw", False)):
        loaded = load_model(folder, checkpoint="last", weights=weights)
        metrics = Metrics(terms)
        for batch in run.val:
            metrics.update(loaded.potential(batch.graph), batch)
        found = metrics.compute(torch.device("cpu"))
        row = rows(folder / "metrics.csv")[-1]
        for name, value in found.items():
            assert value is not None
            assert (float(row[f"val_{name}"]) == pytest.approx(value, rel=1e-12)) is same


def test_best_is_the_smallest_monitored(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    run.fit(terms, monitor="val_forces_mae", max_epochs=4, keep_every=2, every=3)
    values = [float(row["val_forces_mae"]) for row in rows(run.folder / "metrics.csv")]
    best = read_package(run.folder / "checkpoints" / "best.ckpt")
    assert best.metrics["val_forces_mae"] == min(values)
    assert run.checkpoints.best_epoch == values.index(min(values)) + 1
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch-000002.ckpt", "epoch-000004.ckpt", "last.ckpt"]
    assert last(run).training.state["epoch"] == 3


def test_max_steps_in_mid_epoch_still_validates(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    run.fit(terms, max_steps=2)
    (row,) = rows(run.folder / "metrics.csv")
    assert row["step"] == "2"
    assert (run.folder / "checkpoints" / "best.ckpt").is_file()


def test_a_finished_run_does_nothing_more(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    for keys in ({"max_steps": 3}, {"max_epochs": 1}):
        run.fit(terms, **keys)
        before = (run.folder / "checkpoints" / "last.ckpt").read_bytes()
        run.fit(terms, resume=True, **keys)
        assert (run.folder / "checkpoints" / "last.ckpt").read_bytes() == before
        assert len(rows(run.folder / "metrics.csv")) == 1


def test_without_validation_the_last_is_the_best(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    run.fit(terms, max_epochs=2, check_val_every_n_epoch=5)
    assert rows(run.folder / "metrics.csv") == []
    assert load_model(run.folder).metrics == {}


def test_patience_ends_the_run(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    run.fit(terms, patience=2, max_epochs=20, optimizer=lambda p: optimizers.sgd(p, 1e-300), ema_decay=None)
    assert len(rows(run.folder / "metrics.csv")) == 3
    assert (run.folder / "checkpoints" / "last.ckpt").is_file()


def test_a_loss_that_is_not_finite_names_its_structures(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    run.fit(terms, max_epochs=1)
    before = (run.folder / "checkpoints" / "last.ckpt").read_bytes()
    run.relabel("train", 2, forces=np.full_like(run.structures[2].forces, np.inf))
    with pytest.raises(InputError, match=r"The loss of step \d of epoch 2 is (inf|nan).*made\.xyz frame 2") as caught:
        run.fit(terms, resume=True)
    path = run.folder / "nonfinite.extxyz"
    assert str(path) in str(caught.value)
    assert path.is_file()
    assert (run.folder / "checkpoints" / "last.ckpt").read_bytes() == before


def test_losses_read_late_stop_the_run_before_a_checkpoint(
    make_run: MakeRun, terms: loss.Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    run.relabel("train", 2, energy=np.nan)
    trainer, module, data = run.parts(terms)
    monkeypatch.setattr(module, "on_fit_start", lambda: setattr(module.losses, "every", 50))
    with pytest.raises(InputError, match=r"made\.xyz frame 2"):
        trainer.fit(module, datamodule=data)
    assert not (run.folder / "checkpoints").exists()


class BadGradient(Callback):
    """The gradient of one step is NaN, its loss is not."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step == self.step - 1:
            optimizer.param_groups[0]["params"][0].grad.fill_(torch.nan)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_weights_that_are_not_finite_reach_no_checkpoint(
    make_run: MakeRun, terms: loss.Loss, ema_decay: float | None
) -> None:
    run = make_run()
    keys = {"ema_decay": ema_decay, "check_val_every_n_epoch": 9}
    run.fit(terms, max_epochs=1, **keys)
    path = run.folder / "checkpoints" / "last.ckpt"
    before = path.read_bytes()
    name = next(name for name, weight in run.model.named_parameters() if weight.requires_grad)
    with pytest.raises(InputError, match=rf"After step 3 of epoch 2, whose loss was \d.* 1 of .*{re.escape(name)}\. "):
        run.fit(terms, max_epochs=3, resume=True, more=[BadGradient(6)], **keys)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.name != "best.ckpt"] == ["last.ckpt"]


def test_the_weights_average_from_now_on_when_a_run_is_resumed_with_it(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    run.fit(terms, ema_decay=None, max_epochs=1)
    assert last(run).manifest["weights"] == "raw"
    run.fit(terms, ema_decay=0.9, max_epochs=2, resume=True)
    assert last(run).training.state["ema_updates"] == 3


def test_clipping_is_the_trainers(make_run: MakeRun, terms: loss.Loss) -> None:
    run, free = make_run(), make_run("free")
    keys = {"max_epochs": 1, "optimizer": lambda p: optimizers.sgd(p, 1.0), "ema_decay": None}
    start = {name: t.clone() for name, t in run.model.state_dict().items()}
    run.fit(terms, gradient_clip_val=1e-9, **keys)
    free.fit(terms, **keys)
    moved = max((t - start[name]).abs().max().item() for name, t in run.model.state_dict().items())
    assert 0 < moved <= 3e-9
    assert max((t - start[name]).abs().max().item() for name, t in free.model.state_dict().items()) > 1e-6


def test_an_unknown_monitor_is_refused(make_run: MakeRun, terms: loss.Loss) -> None:
    with pytest.raises(ConfigError, match="val_lose"):
        make_run().parts(terms, monitor="val_lose")


def test_a_monitor_without_labels_is_refused(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    for number in range(len(run.val)):
        run.relabel("val", number, stress=None)
    with pytest.raises(ConfigError, match="val_stress_mae has no value"):
        run.fit(terms, monitor="val_stress_mae")


def test_plateau_by_steps_is_refused(make_run: MakeRun, terms: loss.Loss) -> None:
    with pytest.raises(ConfigError, match="interval: epoch"):
        make_run().fit(terms, interval="step")


def test_disk_full_leaves_the_last_good_checkpoint(make_run: MakeRun, terms: loss.Loss) -> None:
    import resource

    run = make_run()
    run.fit(terms, max_epochs=1)
    path = run.folder / "checkpoints" / "last.ckpt"
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InputError, match=r"Can not write .*(best|last)\.ckpt"):
            run.fit(terms, max_epochs=2, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_weights_of_frames_and_missing_labels(make_run: MakeRun, terms: loss.Loss) -> None:
    run = make_run()
    run.relabel("train", 1, energy=None)
    run.fit(terms, max_epochs=1)
    assert np.isfinite(float(rows(run.folder / "metrics.csv")[0]["train_loss"]))


def test_random_state_round_trip() -> None:
    device = torch.device("cpu")
    state = random_state(device)
    first = random.random(), np.random.rand(), torch.rand(())
    set_random_state(state, device)
    second = random.random(), np.random.rand(), torch.rand(())
    assert first[:2] == second[:2]
    assert torch.equal(first[2], second[2])
