"""What `nequip train` does once its config is known: data, model, run folder, training, evaluation, report."""

from __future__ import annotations

import logging
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from nequip_core.cli.terminal import RunConsole, data_summary, model_summary, results_table
from nequip_core.config import build
from nequip_core.config.checks import device_type
from nequip_core.config.compose import to_yaml
from nequip_core.config.run import Run, now, versions, write_json
from nequip_core.config.schema import Config
from nequip_core.engines.evaluate import evaluate, predictor
from nequip_core.export.artifact import load_model
from nequip_core.files import sha256
from nequip_core.models.base import EnergyModel
from nequip_core.plugins.manager import Registry
from nequip_core.training.callbacks import CtrlCError, StoppedError
from nequip_core.training.report import write_report


def dry_run(config: Config, registry: Registry) -> int:
    """Print the resolved config, the data and the model's size."""
    console = RunConsole(bar=False)
    cache = build.data_cache(config, write=False, say=console.say)
    data = build.prepare_data(config, registry, cache=cache, progress=console.progress, say=console.say)
    model, kernels = build.build_energy_model(config, data.model, registry)
    console.print(to_yaml(config), highlight=False, markup=False, soft_wrap=True)
    data_summary(console, data)
    model_summary(console, model, kernels)
    console.say("Nothing was written (--dry-run).")
    return 0


def train(config: Config, registry: Registry, argv: Sequence[str]) -> int:
    """Look at the run's folder, read the data, train, evaluate, report."""
    with closing(RunConsole(bar=config.trainer.enable_progress_bar)) as console, Run(config, registry) as run:
        if run.finished and run.earlier:
            console.say(f"{run.path} holds this run, finished on {run.earlier['end']}: nothing is left to do.")
            console.say("To train on, raise trainer.max_epochs; to start anew, run.if_exists=new.")
            return 0
        seed_everything(config.seed)
        console.say("Reading the data ...")
        cache = build.data_cache(config, say=console.say)
        data = build.prepare_data(config, registry, cache=cache, progress=console.progress, say=console.say)
        data_summary(console, data)
        model, kernels = build.build_energy_model(config, data.model, registry)
        model_summary(console, model, kernels)

        aside = run.begin(argv, devices=[device_type(config)], kernels=kernels)
        console.log_to(run.path / "log.txt")
        if aside:
            console.say(f"The old run is now {aside}.")
        write_json(run.path / "data" / "splits.json", data.splits.to_json())
        write_json(run.path / "data" / "statistics.json", data.statistics.to_json())
        with recorded(run), quiet_lightning():
            fit(run, config, registry, model, data, console)
            finish(run, config, registry, data, console)
    return 0


def seed_everything(seed: int) -> None:
    """The generators that initial weights and plugins draw from; the order of batches has its own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Write into run.json how the block ended."""
    try:
        yield
    except (KeyboardInterrupt, StoppedError):
        run.update(state="stopped", end=now())
        raise
    except BaseException as error:
        run.update(state="failed", end=now(), error=str(error) or type(error).__name__)
        raise


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's remarks on devices, loaders and the end of the training, which are said here otherwise."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning", message=r".*does not have many workers")
            warnings.filterwarnings("ignore", module="lightning", message=r".*isinstance\(treespec, LeafSpec\)")
            yield
    finally:
        logger.setLevel(before)


def fit(
    run: Run, config: Config, registry: Registry, model: EnergyModel, data: build.RunData, console: RunConsole
) -> None:
    """Train, from the last checkpoint where there is one."""
    about = build.provenance(config, registry, data, {**versions(), **registry.versions()}, run.hashes)
    module = build.build_module(config, registry, model, data, run.path / "not_finite.extxyz")
    training = build.build_trainer(
        config, registry, run.path, about, run_id=run.manifest["id"], console=console, extra=[Terminator()]
    )
    last = run.last_checkpoint
    console.say(f"Training in {run.path}" + (f", going on from {last.name}" if last else ""))
    with ctrl_c_stops(last):
        training.trainer.fit(module, datamodule=data.module, ckpt_path=last)
    run.update(best_epoch=training.checkpoints.best_epoch)


def finish(run: Run, config: Config, registry: Registry, data: build.RunData, console: RunConsole) -> None:
    """Evaluate every set with best.ckpt, write the report, say where all is."""
    console.say("Evaluating best.ckpt ...")
    loaded = load_model(run.path, device=device_type(config), kernels=config.kernels, registry=registry)
    folder = run.path / "evaluation"
    folder.mkdir(exist_ok=True)
    results = {}
    for name, item in data.sets.items():
        sources = [{"path": str(path), "sha256": sha256(path)} for path in item.paths]
        results[name] = evaluate(
            predictor(loaded, registry),
            item.structures,
            data=sources[0] if len(sources) == 1 else {key: [one[key] for one in sources] for key in sources[0]},
            write=folder / f"{name}.extxyz",
            warn=lambda message: console.say(message, "warning"),
            progress=console.progress,
        )
        write_json(folder / f"{name}.json", results[name])
    run.update(state="finished", end=now())
    report = write_report(run.path)
    results_table(console, results)
    console.say(f"report      {report}")
    console.say(f"errors      {folder}/*.json")
    console.say(f"checkpoint  {loaded.path}   try: nequip info {run.path}")


@contextmanager
def ctrl_c_stops(last: Path | None) -> Iterator[None]:
    """Before the first step and after the last one Ctrl-C ends the run at once; Lightning would exit with code 1.

    In between `nequip_core.training.callbacks.EarlyEnd` finishes the step and writes a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    where = f"from {last}" if last else "from the beginning, or from the last checkpoint where there is one"

    def stop(signum: int, frame: FrameType | None) -> None:
        raise CtrlCError(f"Stopped by Ctrl-C outside the steps. The same command goes on {where}.")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM, with which schedulers and `kill` end a process, acts as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


class Terminator(Callback):
    """The same inside the training, where Lightning puts a handler of its own in place."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has just set its handler, and puts the earlier one back in the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _interrupt)
