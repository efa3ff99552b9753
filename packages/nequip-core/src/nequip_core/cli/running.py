"""What `nequip train` does once its config is known: data, model, run folder, training, evaluation, report."""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from nequip_core.cli.main import INTERRUPTED, is_interrupt
from nequip_core.cli.terminal import RunConsole, data_summary, model_summary, results_table
from nequip_core.config import build
from nequip_core.config.checks import device_type
from nequip_core.config.compose import keys_of, to_yaml
from nequip_core.config.run import FILES, Run, hashes, now, versions, write_json
from nequip_core.config.schema import Config
from nequip_core.engines.evaluate import evaluate, predictor
from nequip_core.errors import NequipError
from nequip_core.export.artifact import load_model
from nequip_core.files import sha256
from nequip_core.models.base import EnergyModel
from nequip_core.plugins.manager import Registry
from nequip_core.training.callbacks import CtrlCError, StoppedError
from nequip_core.training.ranks import ONE, LostRankError, Place, Ranks
from nequip_core.training.report import write_report
from nequip_core.training.watch import Failure

TESTED = ((2, 11), (2, 14))
"""Versions of torch, from and to, with which tracing and compiling are tested."""


def untested_torch(version: str) -> str | None:
    """A sentence about a version of torch outside of `TESTED`, or None."""
    number = tuple(int(part) for part in version.split(".")[:2])
    if TESTED[0] <= number <= TESTED[1]:
        return None
    first, last = (".".join(map(str, one)) for one in TESTED)
    return f"torch {version} is not among the versions that are tested, {first} to {last}: what is compiled may fail."


def dry_run(config: Config, registry: Registry) -> int:
    """Print the resolved config, the data and the model's size."""
    console = RunConsole(bar=False)
    cache = build.data_cache(config, write=False, say=console.say)
    data = build.prepare_data(config, registry, cache=cache, progress=console.progress, say=console.say)
    model, kernels = build.build_energy_model(config, data, registry)
    console.print(to_yaml(config), highlight=False, markup=False, soft_wrap=True)
    data_summary(console, data)
    model_summary(console, model, kernels)
    console.say("Nothing was written (--dry-run).")
    return 0


def train(config: Config, registry: Registry, argv: Sequence[str], ranks: Ranks = ONE) -> int:
    """Look at the run's folder, read the data, train, evaluate, report.

    Of several processes the first one writes and speaks.
    """
    ranks.patience(config.trainer.rank_timeout, lambda message: None)
    ranks.same(told_of(config, registry), "Give all processes the same command and the same installation.")
    with (
        closing(RunConsole(bar=config.trainer.enable_progress_bar, quiet=not ranks.is_first)) as console,
        Run(config, registry, ranks) as run,
    ):
        if run.finished and run.earlier:
            console.say(f"{run.path} holds this run, finished on {run.earlier['end']}: nothing is left to do.")
            console.say("To train on, raise trainer.max_epochs; to start anew, run.if_exists=new.")
            return 0
        seed_everything(config.seed)
        console.say("Reading the data ...")
        data = read_together(config, registry, console, ranks)
        data_summary(console, data)
        model, kernels = build.build_energy_model(config, data, registry)
        model_summary(console, model, kernels)
        if untested := untested_torch(torch.__version__):
            console.say(untested, "warning")

        devices = ranks.gather(str(build.torch_device(config, ranks)), "the names of the devices")
        aside = run.begin(argv, devices=devices, world_size=ranks.size, kernels=kernels)
        if ranks.is_first:
            console.log_to(run.path / "log.txt")
            if aside:
                console.say(f"The old run is now {aside}.")
            write_json(run.path / "data" / "splits.json", data.splits.to_json())
            write_json(run.path / "data" / "statistics.json", data.statistics.to_json())
        with recorded(run), quiet_lightning():
            fit(run, config, registry, model, data, console, ranks)
            ranks.leave()
            if ranks.is_first:
                finish(run, config, registry, data, console)
    return 0


def told_of(config: Config, registry: Registry) -> dict[str, Any]:
    """What must be the same in all processes: keys, versions, and the contents of the files."""
    own = ("data.cache", "data.workers", *FILES)
    return {
        **{key: value for key, value in keys_of(config) if key not in own},
        **{f"the version of {name}": version for name, version in {**versions(), **registry.versions()}.items()},
        **{f"the content of {key}": list(found.values()) for key, found in hashes(config).items()},
    }


def read_together(config: Config, registry: Registry, console: RunConsole, ranks: Ranks) -> build.RunData:
    """The data, read by one process of each machine first, from whose cache the others take it; all get the same."""

    def progress(what: str, done: int, total: int | None = None) -> None:
        ranks.at(what)
        console.progress(what, done, total)

    cache = build.data_cache(config, say=console.say)
    with ranks.first_ahead("the reading of the data") if cache.folder else nullcontext():
        data = build.prepare_data(config, registry, cache=cache, progress=progress, say=console.say, ranks=ranks)
    found = {
        "the training set": data.module.train.key["structures"],
        "the validation set": data.module.val.key["structures"],
        **{f"statistics.{name}": value for name, value in data.statistics.to_json().items()},
    }
    ranks.same(found, "Let all processes read the same files with the same versions; empty data.cache where it is old.")
    return data


def together(place: Place, act: Callable[[Ranks], int]) -> int:
    """Do something as one of the processes of a run; what several of them have to complain of is said once."""
    ranks = Ranks(place)
    try:
        with ranks:
            return act(ranks)
    except BaseException as error:
        if ranks.watch is None:
            raise
        code = INTERRUPTED if is_interrupt(error) else error.exit_code if isinstance(error, NequipError) else 1
        mine = Failure(ranks.rank, code, str(error))
        first = ranks.watch.fail(mine)
        if first != mine and (isinstance(error, LostRankError) or first[1:] == mine[1:]):
            ranks.watch.wait_until_said()  # or a launcher would end the one that speaks
            return first.code
        if is_interrupt(error) or isinstance(error, NequipError):
            text = "interrupted" if is_interrupt(error) else str(error)
            print(f"nequip: {text}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        ranks.watch.said()
        return code


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
            # What is logged is the same in all processes already.
            warnings.filterwarnings("ignore", module="lightning", message=r".*sync_dist=True")
            yield
    finally:
        logger.setLevel(before)


def fit(
    run: Run,
    config: Config,
    registry: Registry,
    model: EnergyModel,
    data: build.RunData,
    console: RunConsole,
    ranks: Ranks = ONE,
) -> None:
    """Train, from the last checkpoint where there is one."""
    ranks.patience(config.trainer.rank_timeout, lambda message: run.update(state="failed", end=now(), error=message))
    about = build.provenance(config, registry, data, {**versions(), **registry.versions()}, run.hashes)
    module = build.build_module(config, registry, model, data, run.path, say=console.say, ranks=ranks)
    training = build.build_trainer(
        config, registry, run.path, about, run_id=run.manifest["id"], console=console, ranks=ranks, extra=[Terminator()]
    )
    last = ranks.from_first(run.last_checkpoint, "the checkpoint to go on from")
    console.say(f"Training in {run.path}" + (f", going on from {last.name}" if last else ""))
    try:
        with ctrl_c_stops(last):
            training.trainer.fit(module, datamodule=data.module, ckpt_path=last)
    finally:
        if module.compiled is not None:
            run.update(compile=module.compiled.report())
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
