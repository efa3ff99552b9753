"""What can be known to be wrong with a config before any data is read, beyond keys, types and words.

Each check yields pairs of the key at fault and a sentence; `nequip_core.config.compose.compose` reports them with the
file's other errors.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nequip_core.config import schema
from nequip_core.config.parts import argument_mistake, import_class, maker
from nequip_core.config.run import files_of, read_manifest, run_path
from nequip_core.config.schema import Config
from nequip_core.data.cache import folder_of
from nequip_core.errors import ConfigError, InputError
from nequip_core.models.base import ModelConfig
from nequip_core.models.build import build_model
from nequip_core.ops.contracts import NEQUIP_RADIAL_CONVOLUTION
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import Registry, nearest
from nequip_core.training.module import MONITORS
from nequip_core.training.ranks import place_of

Found = Iterable[tuple[str, str]]

NUMBERS_BY_TYPE = ("atomic_energies", "energy_scale", "avg_num_neighbors")
"""Model keys that may be {type: number}."""


def check_parts(config: Config, registry: Registry) -> Found:
    """Optimizer, scheduler and callbacks: the class exists and takes the arguments."""
    training = config.training
    yield from _check_part("optimizer", training.optimizer, ("parameters", "params", "lr"), Optimizer, registry)
    yield from _check_part("scheduler", training.scheduler, ("optimizer",), LRScheduler, registry)
    key = "training.callbacks"
    for number, callback in enumerate(training.callbacks):
        try:
            target = import_class(f"{key}[{number}].name", callback.name)
        except ConfigError as error:
            yield key, str(error)
            continue
        if not issubclass(target, Callback):
            yield key, f"{key}[{number}].name: {callback.name} is no subclass of lightning.pytorch.Callback."
        elif mistake := argument_mistake(target, (), callback.args):
            yield key, f"{key}[{number}].args do not fit {callback.name}: {mistake}."


def _check_part(
    kind: Literal["optimizer", "scheduler"],
    part: schema.Optimizer | schema.Scheduler,
    given: Sequence[str],
    base: type,
    registry: Registry,
) -> Found:
    key = f"training.{kind}"
    try:
        make = maker(kind, part.name, registry)
    except ConfigError as error:
        yield f"{key}.name", str(error)
        return
    if isinstance(make, type) and not issubclass(make, base):
        yield f"{key}.name", f"{key}.name: {part.name} is no subclass of {base.__module__}.{base.__qualname__}."
        return
    for name in {"lr", *given} & part.args.keys():
        yield f"{key}.args", f"{key}.args.{name} is given by us. The learning rate is training.optimizer.lr."
        return
    if mistake := argument_mistake(make, given, part.args):
        yield f"{key}.args", f"{key}.args do not fit {part.name}: {mistake}."


def check_files(config: Config, registry: Registry) -> Found:
    """Files that the config names are there and not empty."""
    for key, paths in files_of(config).items():
        for path in paths:
            if not path.exists():
                beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
                near = nearest(path.name, beside)
                yield key, f"{key}: there is no file {path} (seen from {Path.cwd()}).{near}"
            elif not path.is_file():
                yield key, f"{key}: {path} is no file."
            elif path.stat().st_size == 0:
                yield key, f"{key}: {path} is an empty file. Expected structures with labels."


def check_data(config: Config, registry: Registry) -> Found:
    """Keys of the data block that need each other."""
    data, split = config.data, config.data.split
    for word in ("group", "file"):
        if split.by == word and getattr(split, word) is None:
            yield f"data.split.{word}", f"data.split.by is {word}, so data.split.{word} must be given."
        if split.by != word and getattr(split, word) is not None:
            yield f"data.split.{word}", f"data.split.{word} is used by data.split.by: {word} only, which is {split.by}."
    rest = [name for name in ("train", "val", "test") if getattr(split, name) == "rest"]
    if len(rest) > 1:
        yield f"data.split.{rest[1]}", f"data.split: only one of {', '.join(rest)} can be the rest."
    fractions = sum(share for share in (split.train, split.val, split.test) if isinstance(share, float))
    if fractions > 1 + 1e-9:
        yield "data.split.train", f"data.split: the fractions sum to {fractions:g}. Expected at most 1."
    if split.train == 0:
        yield "data.split.train", "data.split.train is 0. Expected at least one frame to train on."
    if split.val == 0 and data.val_path is None and split.by != "file":
        yield "data.split.val", "data.split.val is 0 and data.val_path is null. Expected frames to validate on."
    folder = folder_of(data.cache)
    if folder is not None and folder.exists() and not folder.is_dir():
        yield "data.cache", f"data.cache: {folder} is a file. Expected a folder, auto or off."
    if config.model.atomic_energies == "isolated_atoms" and data.isolated_atoms is None:
        yield "data.isolated_atoms", "model.atomic_energies is isolated_atoms, so data.isolated_atoms must name a file."


def check_training(config: Config, registry: Registry) -> Found:
    """Something is trained, and it ends."""
    training, trainer = config.training, config.trainer
    if not any(term.weight > 0 for term in (training.loss.energy, training.loss.forces, training.loss.stress)):
        yield "training.loss", "training.loss: every weight is 0. Expected at least one term to train on."
    if training.monitor not in MONITORS:
        expected = ", ".join(MONITORS)
        yield "training.monitor", f"training.monitor: expected one of {expected}, received {training.monitor!r}."
    if training.scheduler.name == "plateau" and training.scheduler.interval == "step":
        key = "training.scheduler.interval"
        yield key, f"{key} is step, but plateau follows validations. Expected epoch."
    if training.matmul_precision != "float32":
        key = "training.matmul_precision"
        if not training.compile:
            yield key, f"{key} is {training.matmul_precision}, which needs training.compile=true."
        elif config.model.dtype != "float32":
            yield (
                key,
                f"{key} is {training.matmul_precision}, but model.dtype is {config.model.dtype}. Expected float32.",
            )
        elif training.matmul_precision == "tf32" and device_type(config) != "cuda":
            yield key, f"{key} is tf32, which only CUDA devices have. Expected float32 or bf16 on the CPU."
    if training.compile_check_every and not training.compile:
        yield "training.compile_check_every", "training.compile_check_every needs training.compile=true."
    if training.cuda_graphs is True:
        key = "training.cuda_graphs"
        if not training.compile:
            yield key, f"{key} is true, which needs training.compile=true: compiled steps are recorded. Or take auto."
        elif device_type(config) != "cuda":
            yield key, f"{key} is true, but this run is on the CPU, where there are none. Expected auto or false."
    if trainer.max_epochs == -1 and trainer.max_steps == -1 and trainer.max_time is None:
        yield "trainer.max_epochs", "trainer: max_epochs and max_steps are -1 and max_time is null: the run has no end."


def check_loggers(config: Config, registry: Registry) -> Found:
    """What a logger needs is installed."""
    if "wandb" in config.loggers and importlib.util.find_spec("wandb") is None:
        yield (
            "loggers",
            "loggers: wandb is not installed here. Install it (pip install wandb), or take csv and tensorboard.",
        )


def check_devices(config: Config, registry: Registry) -> Found:
    """The devices are there, and the launcher has started as many processes as the config says."""
    trainer, place = config.trainer, place_of(os.environ)
    if trainer.accelerator == "cuda" and not torch.cuda.is_available():
        yield (
            "trainer.accelerator",
            f"trainer.accelerator is cuda, but torch {torch.__version__} sees no CUDA device here. Use cpu or auto, or "
            "see `nequip doctor`.",
        )
        return
    if place.launcher:
        started = {"devices": place.local_size, "num_nodes": place.nodes}
        for name, number in started.items():
            said = getattr(trainer, name)
            if said not in (1, "auto", number):
                yield (
                    f"trainer.{name}",
                    f"trainer.{name} is {said}, but {place.launcher} has started {place.local_size} processes on each "
                    f"of {place.nodes} machines. Leave the key out, or start as many as it says.",
                )
    elif trainer.num_nodes > 1:
        yield (
            "trainer.num_nodes",
            f"trainer.num_nodes is {trainer.num_nodes}: several machines need a launcher. Start `torchrun --nnodes "
            f"{trainer.num_nodes} --nproc_per_node N --rdzv_backend c10d --rdzv_endpoint HOST:29500 -m nequip_core "
            "train ...` on each, or `srun nequip train ...`.",
        )
    count, there = local_processes(config), torch.cuda.device_count()
    # SLURM may show each process its own device only.
    if device_type(config) == "cuda" and count > there and not (place.launcher == "SLURM" and there == 1):
        yield "trainer.devices", f"trainer.devices: {count} CUDA devices are asked for, but only {there} are here."
    if trainer.strategy == "single" and max(count, place.size) > 1:
        yield (
            "trainer.strategy",
            f"trainer.strategy is single, but the run has {max(count, place.size)} processes. Take deferred_ddp or "
            "auto, or trainer.devices=1.",
        )


def check_folder(config: Config, registry: Registry) -> Found:
    """The run's folder can be written to, and run.if_exists allows it."""
    path = run_path(config)
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        yield "run.dir", f"run.dir: {path} can not be a folder: {there} is a file."
    elif not os.access(there, os.W_OK | os.X_OK):
        yield "run.dir", f"run.dir: {path} can not be written to: no permission in {there}."
    else:
        try:
            found = read_manifest(path)
        except InputError as error:
            if config.run.if_exists != "new":
                yield "run.dir", f"run.dir: {error}"
            return
        if found and config.run.if_exists == "error":
            yield (
                "run.dir",
                f"run.dir: {path} holds a run already (state: {found['state']}) and run.if_exists is error. Choose "
                "another run.dir, or run.if_exists=resume to go on, or =new to set it aside.",
            )


def check_model(config: Config, registry: Registry) -> Found:
    """The model can be built: with stand-ins for what the training set decides, and thrown away."""
    model: ModelConfig = config.model
    cutoffs = [
        (centre, neighbor, cutoff) for centre, row in model.pair_cutoffs.items() for neighbor, cutoff in row.items()
    ]
    for centre, neighbor, cutoff in cutoffs:
        if cutoff > model.cutoff:
            key = "model.pair_cutoffs"
            yield key, f"{key}.{centre}.{neighbor} is {cutoff} Å. Expected at most model.cutoff, {model.cutoff} Å."
            return
    named = [name for key in NUMBERS_BY_TYPE if isinstance(getattr(model, key), dict) for name in getattr(model, key)]
    named += [name for row in cutoffs for name in row[:2]] + list(model.elements)
    types = model.types if isinstance(model.types, list) else sorted(set(named)) or ["H"]
    stand_in = dataclasses.replace(
        model, types=types, atomic_energies=dict.fromkeys(types, 0.0), energy_scale=1.0, avg_num_neighbors=1.0
    )
    recomputes = config.training.recompute_weights is True
    ops = Ops(
        registry.kernels,
        request=config.kernels,
        dtype=_dtype(model.dtype),
        device=device_type(config),
        edges=math.inf if recomputes else 0.0,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            build_model(registry.models[model.name], stand_in, ops)
    except ConfigError as error:
        match = re.match(r"((model|training)\.\w+|kernels)\b", str(error))
        yield (match[1] if match else "model"), str(error)
        return
    if recomputes and NEQUIP_RADIAL_CONVOLUTION not in ops.report:
        key = "training.recompute_weights"
        yield key, f"{key} is true, but {model.name} has no weights of edges that could be made again. Expected auto."


def _dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64}[name]


def device_type(config: Config) -> str:
    """Where the model will run: cpu or cuda. That a device which was asked for is there is checked elsewhere."""
    wanted = config.trainer.accelerator in ("auto", "cuda")
    return "cuda" if wanted and torch.cuda.is_available() else "cpu"


def local_processes(config: Config) -> int:
    """How many processes of this machine the run has: what a launcher has started, or else what the config says."""
    place = place_of(os.environ)
    if place.launcher:
        return place.local_size
    number = config.trainer.devices
    if number == "auto":
        return torch.cuda.device_count() if device_type(config) == "cuda" else 1
    return int(number)


CHECKS = (check_parts, check_data, check_training, check_model, check_files, check_loggers, check_devices, check_folder)
"""All of them, in the order in which their findings are reported."""
