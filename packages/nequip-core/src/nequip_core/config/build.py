"""The composition root: a config and the registry become data, a model, a training module and a trainer.

    read_data -> split -> data sets -> statistics -> resolved model config -> model -> training module -> trainer

Nothing below this layer knows of the config or of the registry as a whole; nothing here is written to disk.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
import torch
from ase.data import atomic_numbers
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console

from nequip_core.config import schema
from nequip_core.config.checks import device_type
from nequip_core.config.parts import import_class, maker
from nequip_core.config.run import files_of
from nequip_core.config.schema import Config
from nequip_core.data.cache import NO_CACHE, Cache, folder_of
from nequip_core.data.datamodule import DataModule
from nequip_core.data.dataset import LABELS, Dataset
from nequip_core.data.frames import Frames, columns
from nequip_core.data.ghost import Ghost
from nequip_core.data.read import names_of_labels, read, reader_of
from nequip_core.data.split import Splits, split
from nequip_core.data.statistics import Statistics, compute
from nequip_core.errors import InputError
from nequip_core.export.package import Provenance
from nequip_core.files import sha256
from nequip_core.models.base import EnergyModel, ModelConfig
from nequip_core.models.build import build_model, model_info
from nequip_core.neighbors import DEFAULT, NeighborList
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import Registry
from nequip_core.potential import Potential
from nequip_core.progress import Progress, silent
from nequip_core.recording import Recorder
from nequip_core.structure import Ints, Structure, TypeMap
from nequip_core.training.callbacks import (
    Checkpoints,
    Clock,
    EarlyEnd,
    MetricsTable,
    Patience,
    Position,
    ProgressLines,
    SameWeights,
    StepLimit,
    StepsTable,
)
from nequip_core.training.checkpoint import PackageIO
from nequip_core.training.graphs import LARGEST
from nequip_core.training.loss import Loss, Term
from nequip_core.training.module import TrainingModule
from nequip_core.training.nonfinite import offending_to
from nequip_core.training.pace import Pace
from nequip_core.training.ranks import ONE, Ranks

if TYPE_CHECKING:  # it imports the compiler, which takes a second
    from nequip_core.training.compiled import CompiledTraining

CHECK_STRUCTURES = 2
"""Structures whose predictions go into checkpoints."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationSet:
    """Structures that are evaluated together, and the files that they come from."""

    structures: Frames
    paths: tuple[Path, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class RunData:
    """The data of a run, and the model config that follows from it.

    Attributes:
        module: training and validation batches.
        sets: what is evaluated at the end: val, test (where split.test is not 0) and each of test_paths by its name.
        splits: frame numbers.
        statistics: of the training set.
        model: resolved: lists and numbers in place of ``auto`` and ``least_squares``.
        notes: sentences about the data that the user should see.
    """

    module: DataModule
    sets: Mapping[str, EvaluationSet]
    splits: Splits
    statistics: Statistics
    model: ModelConfig
    notes: tuple[str, ...]


# Data


def data_cache(config: Config, *, write: bool = True, say: Callable[[str], None] = print) -> Cache:
    """Where parsed frames, neighbour lists and statistics are kept."""
    return Cache(folder_of(config.data.cache), write, say)


def read_structures(
    config: Config,
    registry: Registry,
    paths: Sequence[Path],
    *,
    cache: Cache = NO_CACHE,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Frames:
    """All frames of some files, in eV and Å."""
    data = config.data
    options: dict[str, Any] = {"format": data.format, "index": data.index, "keys": data.keys, "units": data.units}
    key = {
        "files": [[str(path), sha256(path)] for path in paths],
        **{name: vars(value) if is_dataclass(value) else value for name, value in options.items()},
        "versions": {"ase": ase.__version__, **registry.versions()},
    }

    def parse() -> Iterator[Structure]:
        done = 0
        for path in paths:
            for structure in read(path, readers=registry.readers, say=say, **options):
                yield structure
                done += 1
                progress("reading", done)

    return Frames(cache.get("frames", key, lambda: columns(parse())))


def read_groups(
    config: Config, registry: Registry, paths: Sequence[Path], *, cache: Cache = NO_CACHE, progress: Progress = silent
) -> list[str]:
    """Each frame's value of the info key ``data.split.group``, read in the place of config_type.

    Raises:
        InputError: frames without one.
    """
    name = config.data.split.group
    assert name is not None  # by the checks of the data block
    keys = dataclasses.replace(config.data.keys, config_type=name)
    grouped = dataclasses.replace(config, data=dataclasses.replace(config.data, keys=keys))
    frames = read_structures(grouped, registry, paths, cache=cache, progress=progress, say=lambda sentence: None)
    found = frames.config_types()
    missing = [number for number, group in enumerate(found) if group is None]
    if missing:
        raise InputError(
            f"{frames.sources(missing[:1])[0]}: no {name!r}, nor in {len(missing) - 1} other frames of {len(found)}. "
            "data.split.by: group needs this info key in every frame (data.split.group)."
        )
    return [group for group in found if group is not None]


def prepare_data(
    config: Config,
    registry: Registry,
    *,
    cache: Cache = NO_CACHE,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
    ranks: Ranks = ONE,
) -> RunData:
    """Read, split, make graphs and statistics, and resolve the model config.

    Args:
        config: of the run.
        registry: readers and neighbour lists.
        cache: from `data_cache`.
        progress: told how far the work is.
        say: told what the user should know of the files.
        ranks: that share the batches.

    Raises:
        InputError: a file, frame or label that can not be used; labels that the loss needs are missing.
    """
    paths = files_of(config)
    shares = config.data.split

    def read_all(*keys: Path) -> Frames:
        return read_structures(config, registry, keys, cache=cache, progress=progress, say=say)

    frames = read_all(*paths["data.path"])
    grouped = shares.by == "group"
    splits = split(
        len(frames),
        {"train": shares.train, "val": shares.val if config.data.val_path is None else 0, "test": shares.test},
        by=shares.by,
        seed=shares.seed,
        groups=read_groups(config, registry, paths["data.path"], cache=cache, progress=progress) if grouped else None,
        file=shares.file,
    )
    train, val, test = (frames.take(part) for part in splits)
    if config.data.val_path is not None:
        val = read_all(*paths["data.val_path"])
    if not len(val):
        raise InputError(
            f"No frame is left to validate on: {len(frames)} in all, {len(train)} to train on. Raise data.split.val, "
            "or name a file: data.val_path."
        )
    typed = resolve_types(config.model, train)
    info = model_info(dataclasses.replace(typed, atomic_energies={}, energy_scale=1.0, avg_num_neighbors=1.0))
    sets = {"val": EvaluationSet(structures=val, paths=tuple(paths["data.val_path"] or paths["data.path"]))}
    if len(test):
        sets["test"] = EvaluationSet(structures=test, paths=tuple(paths["data.path"]))
    for path in paths["data.test_paths"]:
        sets[_free_name(path.name.partition(".")[0], sets)] = EvaluationSet(structures=read_all(path), paths=(path,))
    type_map = TypeMap(info.types, info.elements)
    for evaluation in sets.values():  # before training, not after it
        for number in evaluation.structures.types().values():
            type_map.indices(evaluation.structures[number])
    list_name = DEFAULT if config.data.neighbor_list == "auto" else config.data.neighbor_list
    train_set, val_set = (
        Dataset(
            part,
            type_map,
            np.array(info.pair_cutoffs),
            neighbor_list(config, registry, info.cutoff),
            cache=cache,
            key={"list": list_name, "versions": registry.versions()},
            progress=progress,
        )
        for part in (train, val)
    )
    trained = [name for name in LABELS if getattr(config.training.loss, name).weight]
    train_set.require(*trained, received=lambda: names_in(paths["data.path"][0], config, registry))
    isolated = read_all(*paths["data.isolated_atoms"]) if paths["data.isolated_atoms"] else ()
    statistics = compute(train_set, config.model.atomic_energies, isolated, cache=cache, progress=progress)
    module = DataModule(
        train_set,
        val_set,
        seed=config.seed,
        by=config.data.batch.by,
        size=config.data.batch.size,
        eval_size=config.data.batch.eval_size,
        max_edges=config.data.batch.max_edges,
        limit=config.trainer.limit_train_batches,
        workers=config.data.workers,
        ghost=Ghost(0.5 * float(np.min(info.pair_cutoffs))) if config.training.compile else None,
        rank=ranks.rank,
        ranks=ranks.size,
    )
    module.rounded = records_steps(config, module)
    notes = (statistics.atomic_energies.message, *repeated(train, sets), *oversized(config, train_set))
    return RunData(
        module=module,
        sets=sets,
        splits=splits,
        statistics=statistics,
        model=resolve_model(typed, statistics),
        notes=tuple(note for note in notes if note),
    )


def records_steps(config: Config, data: DataModule) -> bool:
    """Whether steps are recorded as CUDA graphs. A rule of sizes, not of times, so that runs repeat."""
    training = config.training
    if not training.compile or device_type(config) != "cuda" or training.cuda_graphs is False:
        return False
    # Gradients do not come from autograd then: other strategies may want its hooks.
    ours = config.trainer.strategy in ("auto", "single", "deferred_ddp")
    return training.cuda_graphs is True or (ours and data.usual_edges() <= LARGEST)


def names_in(path: Path, config: Config, registry: Registry) -> str:
    """A sentence on the labels of a file's first frame, where ASE reads it."""
    if reader_of(path, config.data.format, registry.readers) is not None:
        return ""
    return names_of_labels(path, "auto" if config.data.format == "ase" else config.data.format)


def repeated(train: Frames, sets: Mapping[str, EvaluationSet]) -> Iterator[str]:
    """A sentence for each set that holds frames of the training set."""
    known = train.column("geometry")
    for name, item in sets.items():
        found = np.flatnonzero(np.isin(item.structures.column("geometry"), known))
        if len(found):
            first = found[:3]
            twins = [int(np.flatnonzero(known == item.structures.column("geometry")[n])[0]) for n in first]
            pairs = zip(item.structures.sources(first), train.sources(twins), strict=True)
            listed = ", ".join(f"{here} = {there}" for here, there in pairs)
            yield (
                f"{len(found)} of the {len(item.structures)} frames of {name} are in the training set too, atom by "
                f"atom ({listed}{' ...' if len(found) > len(first) else ''}). Errors on them say nothing about new "
                "structures: take them out, or keep them together (data.split.by: group)."
            )


def oversized(config: Config, dataset: Dataset) -> Iterator[str]:
    """A sentence where structures alone exceed a limit of the batch."""
    batch = config.data.batch
    limits = {"max_edges": (batch.max_edges, dataset.edges)}
    if batch.by != "structures":
        limits["size"] = (batch.size, getattr(dataset, batch.by))
    for name, (limit, sizes) in limits.items():
        above = 0 if limit is None else int((sizes > limit).sum())
        if above:
            yield (
                f"{above} of the {len(dataset)} training frames exceed data.batch.{name}={limit}, with up to "
                f"{int(sizes.max())} {'edges' if name == 'max_edges' else batch.by}; each is a batch of its own."
            )


def _free_name(name: str, taken: Container[str]) -> str:
    """``name``, or name_2, name_3 ... where it is taken."""
    numbered = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    return next(free for free in numbered if free not in taken)


def neighbor_list(config: Config, registry: Registry, cutoff: float) -> NeighborList:
    """The neighbour list that the config names; auto: the default one."""
    name = config.data.neighbor_list
    entry = registry.neighbor_lists[DEFAULT if name == "auto" else name]
    made: NeighborList = entry.make.load()(cutoff, 0.0)
    return made


def resolve_types(model: ModelConfig, structures: Sequence[Structure]) -> ModelConfig:
    """A model config whose types are a list; auto: those of the structures, by atomic number, then by name.

    Types that are finer than elements tell their elements themselves: the atoms that bear them have one.

    Raises:
        InputError: atoms of two elements bear one type.
    """
    found: dict[str, str] = {}
    for (name, symbol), number in Frames.of(structures).types().items():
        if found.setdefault(name, symbol) != symbol:
            raise InputError(
                f"{structures[number].source}: atoms of type {name!r} are {symbol}, elsewhere {found[name]}. "
                "Expected one element for each type (data.keys.type)."
            )
    names = sorted(found, key=lambda name: (atomic_numbers[found[name]], name))
    types = names if model.types == "auto" else list(model.types)
    elements = {name: symbol for name, symbol in found.items() if name in types and name != symbol}
    return dataclasses.replace(model, types=types, elements={**elements, **model.elements})


def resolve_model(model: ModelConfig, statistics: Statistics) -> ModelConfig:
    """A model config of numbers only.

    Raises:
        InputError: the training set does not determine a number, or makes it zero.
    """
    return dataclasses.replace(
        model,
        atomic_energies=dict(statistics.atomic_energies.values),
        energy_scale=_energy_scale(model.energy_scale, statistics),
        avg_num_neighbors=_avg_num_neighbors(model.avg_num_neighbors, statistics),
    )


def _energy_scale(wanted: Any, statistics: Statistics) -> Any:
    measured = {"forces_rms": statistics.forces_rms, "per_atom_energy_std": statistics.per_atom_energy_std}
    if not isinstance(wanted, str):
        return wanted
    value = measured[wanted]
    if not value:
        what = "no label for it" if value is None else "only zeros"
        raise InputError(
            f"model.energy_scale is {wanted}, but the training set has {what}. Take another, or a number in eV: "
            "model.energy_scale=1.0."
        )
    return value


def _avg_num_neighbors(wanted: Any, statistics: Statistics) -> Any:
    if not isinstance(wanted, str):
        return wanted
    per_type = statistics.avg_num_neighbors_per_type
    alone = [name for name, number in per_type.items() if number == 0]
    if statistics.avg_num_neighbors == 0 or (wanted == "auto_per_type" and alone):
        who = "No atom" if statistics.avg_num_neighbors == 0 else f"No atom of type {', '.join(alone)}"
        raise InputError(
            f"{who} of the training set has a neighbour within the cut-off, so model.avg_num_neighbors can not be "
            f"{wanted}. Check model.cutoff and data.units.length, or give a number: model.avg_num_neighbors=10."
        )
    return dict(per_type) if wanted == "auto_per_type" else statistics.avg_num_neighbors


# Model and training


def build_energy_model(config: Config, data: RunData, registry: Registry) -> tuple[EnergyModel, dict[str, Any]]:
    """A model with new weights, and which kernels compute it: {operator: {chosen, refused}}."""
    model, recomputes = data.model, config.training.recompute_weights
    ops = Ops(
        registry.kernels,
        request=config.kernels,
        dtype=getattr(torch, model.dtype),
        device=torch.device(device_type(config)),
        edges={True: math.inf, False: 0.0}.get(recomputes, data.module.usual_edges()),
    )
    return build_model(registry.models[model.name], model, ops), ops.report


def build_loss(config: Config, registry: Registry) -> Loss:
    """The sum of the three terms."""
    loss = config.training.loss
    energy = "energy_per_atom" if loss.energy.per_atom else "energy"
    terms: dict[str, schema.Term] = {energy: loss.energy, "forces": loss.forces, "stress": loss.stress}
    return Loss(
        tuple(
            Term(quantity, term.weight, registry.training["loss", term.function].make.load()(term.delta))
            for quantity, term in terms.items()
        )
    )


def build_module(
    config: Config,
    registry: Registry,
    model: EnergyModel,
    data: RunData,
    folder: Path,
    say: Callable[[str], None] = print,
    ranks: Ranks = ONE,
) -> TrainingModule:
    """What Lightning trains.

    Args:
        config: of the run.
        registry: optimizers, schedulers, loss functions.
        model: new, on the CPU.
        data: of the run.
        folder: where the structures of a loss that is not finite go, and a compiled step that is not the eager one.
        say: told how compiling goes on.
        ranks: that train together.
    """
    training = config.training
    potential, loss = Potential(model), build_loss(config, registry)
    offending = folder / "not_finite.extxyz"
    return TrainingModule(
        potential,
        loss,
        make_optimizer=partial(
            maker("optimizer", training.optimizer.name, registry), lr=training.optimizer.lr, **training.optimizer.args
        ),
        make_scheduler=partial(maker("scheduler", training.scheduler.name, registry), **training.scheduler.args),
        interval=training.scheduler.interval,  # type: ignore[arg-type]  # one of two words, by its rule
        monitor=training.monitor,
        ema_decay=training.ema_decay,
        check=_check_structures(data.module.val),
        read_losses_every=config.trainer.log_every_n_steps,
        offending=offending_to(offending, lambda ids: [data.module.train.structures[n] for n in ids]),
        offending_val=offending_to(offending, lambda ids: [data.module.val.structures[n] for n in ids]),
        compiled=_compiled(config, potential, loss, data.module, folder, say) if training.compile else None,
        ranks=ranks,
    )


def _compiled(
    config: Config, potential: Potential, loss: Loss, data: DataModule, folder: Path, say: Callable[[str], None]
) -> CompiledTraining:
    """What compiles the steps, for batches of this data set."""
    from nequip_core.tracing import Sizes
    from nequip_core.training.compiled import CODE, CompiledTraining, Sample, sample_sizes

    assert data.ghost is not None
    cache = folder_of(config.data.cache)
    if cache is not None:  # by default Inductor's results are lost when the machine starts again
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.resolve() / f"inductor-{CODE}"))
    batch = config.data.batch

    def sizes(part: Dataset, structures: float) -> Sizes:
        return sample_sizes(structures, float(part.atoms.mean()), float(part.edges.mean()), batch.max_edges)

    sample = Sample(
        training=sizes(data.train, data.usual_structures()),
        validation=sizes(data.val, min(batch.eval_size, len(data.val))),
    )
    return CompiledTraining(
        potential,
        loss,
        sample=sample,
        ghost=data.ghost,
        precision=config.training.matmul_precision,
        check_every=config.training.compile_check_every,
        dump=folder / "compile_deviation.safetensors",
        say=say,
        recorder=Recorder if data.rounded else None,
    )


def _check_structures(dataset: Dataset) -> list[tuple[Any, Structure]]:
    """The smallest structures, without labels, and their graphs."""
    smallest = np.argsort(dataset.atoms, kind="stable")[:CHECK_STRUCTURES].tolist()
    bare = [dataclasses.replace(dataset.structures[n], energy=None, forces=None, stress=None) for n in smallest]
    return [(dataset[n].graph, structure) for n, structure in zip(smallest, bare, strict=True)]


def provenance(
    config: Config, registry: Registry, data: RunData, versions: dict[str, str], hashes: dict[str, dict[str, str]]
) -> Provenance:
    """What checkpoints say besides weights and state."""
    entry = registry.models[data.model.name]
    plugin = next(plugin for plugin in registry.plugins if data.model.name in plugin.records["models"])
    return Provenance(
        model=dataclasses.asdict(data.model),
        data={
            "n_structures": {name: len(part) for name, part in data.splits._asdict().items()},
            "sha256": hashes,
            "units": dataclasses.asdict(config.data.units),
            "statistics": data.statistics.to_json(),
            "validation_batches": {
                "structures": config.data.batch.eval_size,
                "atoms": _largest_batch(data.module.val.atoms, config.data.batch.eval_size),
                "edges": config.data.batch.max_edges,
            },
        },
        config=dataclasses.asdict(config),
        versions=versions,
        provider=f"{plugin.distribution} {plugin.version}",
        citations=[entry.reference] if entry.reference else [],
    )


def _largest_batch(atoms: Ints, size: int) -> int:
    """Atoms of the largest of the batches of ``size`` structures."""
    return int(np.add.reduceat(atoms, np.arange(0, len(atoms), size)).max())


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """A trainer with those of its callbacks that are asked afterwards."""

    trainer: Trainer
    checkpoints: Checkpoints


def build_trainer(
    config: Config,
    registry: Registry,
    folder: Path,
    provenance: Provenance,
    *,
    run_id: str,
    console: Console,
    ranks: Ranks = ONE,
    extra: Sequence[Callback] = (),
) -> Training:
    """Lightning's trainer, which writes into ``folder`` (made when the training begins).

    Args:
        config: of the run.
        registry: strategies.
        folder: of the run.
        provenance: what checkpoints say.
        run_id: by which Weights & Biases knows the run again when it goes on.
        console: for the lines and the bar of the training.
        ranks: that train together.
        extra: further callbacks.
    """
    trainer, training = config.trainer, config.training
    clock, pace = Clock(), Pace()
    checkpoints = Checkpoints(folder / "checkpoints", every=training.checkpoint_every, keep_every=training.keep_every)
    steps = folder / "steps.csv" if "csv" in config.loggers else None
    callbacks: list[Callback] = [
        clock,
        pace,
        MetricsTable(folder / "metrics.csv", clock),
        StepsTable(steps, clock, pace, trainer.log_every_n_steps),
    ]
    if training.early_stopping_patience is not None:
        callbacks.append(Patience(training.early_stopping_patience))
    if trainer.max_steps != -1:
        callbacks.append(StepLimit(trainer.max_steps))
    if ranks.size > 1:
        callbacks += [Position(ranks), SameWeights(ranks, trainer.log_every_n_steps)]
    callbacks += [checkpoints, EarlyEnd(checkpoints, max_time=seconds(trainer.max_time), ranks=ranks)]
    callbacks += [ProgressLines(console, pace), *extra]
    callbacks += [import_class("training.callbacks", item.name)(**item.args) for item in training.callbacks]
    device = torch_device(config, ranks)
    automatic = "single" if ranks.size == 1 else "deferred_ddp"
    strategy = registry.training["strategy", automatic if trainer.strategy == "auto" else trainer.strategy]
    return Training(
        trainer=Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],  # of this process
            strategy=strategy.make.load()(device, ranks),
            max_epochs=trainer.max_epochs,
            check_val_every_n_epoch=trainer.check_val_every_n_epoch,
            log_every_n_steps=1,  # ours is that of steps.csv
            deterministic=trainer.deterministic,
            gradient_clip_val=training.gradient_clip,
            callbacks=callbacks,
            logger=build_loggers(config, folder, run_id),
            profiler=pace.fetch,
            plugins=[PackageIO(provenance), LightningEnvironment()],  # launchers are ours to read
            default_root_dir=folder,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            inference_mode=False,  # forces are gradients
            use_distributed_sampler=False,
        ),
        checkpoints=checkpoints,
    )


def torch_device(config: Config, ranks: Ranks = ONE) -> torch.device:
    """Of this process."""
    if device_type(config) == "cpu":
        return torch.device("cpu")
    # SLURM may show each process its own device only.
    return torch.device("cuda", ranks.place.local_rank % torch.cuda.device_count())


def build_loggers(config: Config, folder: Path, run_id: str) -> list[Logger]:
    """What Lightning logs to besides our tables, in the order of the config."""
    makers: Mapping[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="", version="tensorboard"),
        "wandb": lambda: begin_wandb(config, folder, run_id),
    }
    return [makers[name]() for name in config.loggers if name in makers]


def begin_wandb(config: Config, folder: Path, run_id: str) -> Logger:
    """A logger to Weights & Biases, whose run there has begun.

    Raises:
        InputError: it did not begin, since nobody is logged in or the server can not be reached.
    """
    import wandb  # an option, which the checks of the config have found

    logger = WandbLogger(
        name=config.run.name,
        save_dir=folder,
        id=run_id,
        resume="allow",
        project=os.environ.get("WANDB_PROJECT", "nequip"),
        config=dataclasses.asdict(config),
    )
    try:
        _ = logger.experiment
    except wandb.errors.Error as error:
        raise InputError(
            f"Weights & Biases takes no run: {error} Give it your key (wandb login), keep the run on this machine "
            "(WANDB_MODE=offline), or take wandb out of loggers."
        ) from error
    return logger


def seconds(text: str | None) -> float | None:
    """DD:HH:MM:SS in seconds."""
    if text is None:
        return None
    days, hours, minutes, rest = (int(part) for part in text.split(":"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
