"""Every key of a training config, with its default, description and unit.

The dataclasses hold the defaults; the ``model`` block is the dataclass of the chosen `ModelEntry`. What a value may be
beyond its type stands in `RULES`, one line per key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from nequip_core.data.read import Keys, Units
from nequip_core.keys import MISSING, key


def block(cls: type, text: str, **defaults: Any) -> Any:
    """A config field that holds further keys."""
    return field(default_factory=lambda: cls(**defaults), metadata={"text": text, "unit": None})


@dataclass
class Run:
    """The run and its folder."""

    name: str = key(MISSING, "name of the run; default: the config file's name")
    dir: str = key("runs/${run.name}", "folder of all that the run writes")
    if_exists: str = key("resume", "when the folder holds a run: resume | new (the old one becomes DIR.1) | error")


@dataclass
class Split:
    """Which frames train, validate and test. Counts are whole numbers, fractions are below 1."""

    train: Any = key(0.9, "frames, or fraction of all, or rest: what remains")
    val: Any = key(0.1, "frames, or fraction of all, or rest")
    test: Any = key(0, "frames, or fraction of all, or rest")
    by: str = key("random", "random | order | group | file")
    group: str | None = key(None, "by: group: the info key whose values stay together")
    file: str | None = key(None, 'by: file: JSON {"train": [frame numbers], "val": [...]}')
    seed: int = key(0, "of the random split; independent of the top seed, so that several seeds share one split")


@dataclass
class Batch:
    """How structures are gathered into optimizer steps."""

    by: str = key("structures", "what size counts: structures | atoms | edges")
    size: int = key(5, "per optimizer step, all devices together")
    eval_size: int = key(64, "structures per validation or test batch; no effect on results")
    max_edges: int | None = key(
        None, "per device; a larger share of a step is cut into micro-batches, gradients summed; null: no limit"
    )


@dataclass
class Data:
    """The frames, their labels, split and batches."""

    path: Any = key(MISSING, "file or list of files; any format ASE reads; .gz and .xz too")
    val_path: Any = key(None, "own validation file(s) instead of split.val")
    test_paths: list[str] = key([], "each evaluated at the end with best.ckpt, named by its file")
    isolated_atoms: str | None = key(None, "one-atom frames with energies, for atomic_energies: isolated_atoms")
    format: str = key("auto", "auto: by the file's name; or an ASE format name")
    index: str = key(":", "which frames of each file, an ASE slice")
    split: Split = block(Split, "which frames train, validate and test")
    keys: Keys = block(Keys, "names of the labels in the file")
    units: Units = block(Units, "units of the numbers in the file")
    batch: Batch = block(Batch, "how structures are gathered into optimizer steps")
    neighbor_list: str = key("auto", "auto, or a name from `nequip plugins`")
    cache: str = key(
        "auto",
        "folder for parsed frames, neighbour lists and statistics; auto: NEQUIP_CACHE_DIR or ~/.cache/nequip; or off",
    )
    workers: int = key(0, "processes that prepare batches")


@dataclass
class Term:
    """One term of the loss: weight * mean of function(prediction - label)."""

    weight: float = key(1.0, "factor of the term as written; 0: not trained, still reported")
    function: str = key("mse", "mse | mae | huber | a plugin's")
    delta: float = key(0.01, "huber: where the square becomes linear, in the unit of the label")


@dataclass
class EnergyTerm(Term):
    """The energy term, in eV/atom, or in eV."""

    per_atom: bool = key(True, "compare energies divided by the number of atoms")


@dataclass
class Loss:
    """The sum of three terms."""

    energy: EnergyTerm = block(EnergyTerm, "mean over structures, eV/atom")
    forces: Term = block(Term, "mean over components, eV/Å")
    stress: Term = block(Term, "mean over 3x3 components of fully periodic frames, eV/Å³", weight=0.0, delta=0.001)


@dataclass
class Optimizer:
    """The optimizer."""

    name: str = key("adam", "adam | adamw | sgd | a plugin's | a dotted class name")
    lr: float = key(0.01, "learning rate")
    args: dict[str, Any] = key({}, "further arguments of the class")


@dataclass
class Scheduler:
    """The learning-rate schedule."""

    name: str = key("none", "none | plateau | cosine | step | a plugin's | a dotted class name")
    interval: str = key("epoch", "when it advances: epoch | step")
    args: dict[str, Any] = key({}, "further arguments of the class")


@dataclass
class Callback:
    """A Lightning callback."""

    name: str = key(MISSING, "dotted class name")
    args: dict[str, Any] = key({}, "its arguments")


@dataclass
class Training:
    """Loss, optimizer and what happens between epochs."""

    loss: Loss = block(Loss, "sum of weight * mean of function(prediction - label)")
    optimizer: Optimizer = block(Optimizer, "the optimizer")
    scheduler: Scheduler = block(Scheduler, "the learning-rate schedule")
    ema_decay: float | None = key(None, "decay per step of the averaged weights; null: off")
    gradient_clip: float | None = key(None, "largest norm of the whole gradient; null: off")
    monitor: str = key(
        "val_loss", "column of metrics.csv that best.ckpt, plateau and early stopping follow; smaller wins"
    )
    early_stopping_patience: int | None = key(
        None, "validations without improvement before the run ends", "validations"
    )
    checkpoint_every: int = key(1, "between writes of last.ckpt", "epochs")
    keep_every: int | None = key(None, "between kept copies epoch-000100.ckpt; null: none", "epochs")
    compile: bool = key(False, "forward, forces, loss and their derivatives as one compiled graph")
    compile_check_every: int = key(0, "between comparisons of the compiled step with eager; 0: at the start", "steps")
    cuda_graphs: Any = key(
        "auto", "compiled steps are recorded, so that each is one launch: auto | true | false; auto: steps of few edges"
    )
    recompute_weights: Any = key(
        "auto",
        "NequIP: weights of edges are made again where they are needed, at most 512 MB at a time: auto | true | false; "
        "auto: in layers where those of a usual batch are more",
    )
    matmul_precision: str = key("float32", "of compiled matrix products: float32 | tf32 | bf16; the error is printed")
    callbacks: list[Callback] = key([], "[{name: dotted.Class, args: {...}}], Lightning callbacks")


@dataclass
class Trainer:
    """Lightning's own names."""

    accelerator: str = key("auto", "auto | cpu | cuda")
    devices: Any = key(1, "GPUs, or processes on the CPU, of each machine; auto: all GPUs; torchrun and srun say it")
    num_nodes: int = key(1, "machines; torchrun and srun say it")
    strategy: str = key("auto", "auto | single | deferred_ddp | a plugin's; auto: deferred_ddp for several processes")
    rank_timeout: float = key(1800.0, "in which no process has moved: the run ends and names the one that hangs", "s")
    max_epochs: int = key(100, "the run ends after this many; -1: no limit", "epochs")
    max_steps: int = key(-1, "the run ends after this many optimizer steps; -1: no limit", "steps")
    max_time: str | None = key(None, "the run stops as for Ctrl-C, with a checkpoint", "DD:HH:MM:SS")
    check_val_every_n_epoch: int = key(1, "between validations", "epochs")
    log_every_n_steps: int = key(50, "between rows of steps.csv", "steps")
    limit_train_batches: Any = key(1.0, "whole number: batches per epoch; 1.0 or below: fraction of them")
    deterministic: bool = key(False, "only deterministic algorithms of torch (sums over edges always are)")
    enable_progress_bar: bool = key(True, "show a progress bar in the terminal")


@dataclass
class Config:
    """A training run."""

    seed: int = key(0, "of the initial weights and the order of batches; not of the split")
    kernels: Any = key("auto", "auto | reference | NAME | {operator: NAME, ...}")
    loggers: list[str] = key(
        ["csv", "tensorboard"], "csv: steps.csv; tensorboard; wandb; metrics.csv is always written"
    )
    run: Run = block(Run, "the run and its folder")
    data: Data = block(Data, "the frames, their labels, split and batches")
    model: Any = key(MISSING, "the chosen model's own keys")
    training: Training = block(Training, "loss, optimizer and what happens between epochs")
    trainer: Trainer = block(Trainer, "Lightning's own names")


def described(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a config dataclass: its dotted name and dataclass field, blocks before their keys."""
    for item in fields(cls):
        yield f"{prefix}{item.name}", item
        value = item.default_factory() if callable(item.default_factory) else None
        if is_dataclass(value) and not isinstance(value, type):
            yield from described(type(value), f"{prefix}{item.name}.")


@dataclass(frozen=True)
class Rule:
    """What a key accepts beyond its type, in words and as a test; ``words``: to find the nearest allowed one."""

    expected: str
    accepts: Callable[[Any], bool]
    words: tuple[str, ...] = ()


def one_of(*words: str) -> Rule:
    """One of a few words."""
    return Rule(" | ".join(words), lambda value: value in words, words)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float (not a bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_counts(value: Any, least: int = 0) -> bool:
    return isinstance(value, list) and all(_is_count(item, least) for item in value)


def _is_share(value: Any) -> bool:
    return value == "rest" or _is_count(value, 0) or (isinstance(value, float) and 0 <= value < 1)


def _is_files(value: Any) -> bool:
    """A name, or a list of names that is not empty."""
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name for name in names)


def _is_number_or_map(value: Any) -> bool:
    return is_number(value) or (isinstance(value, dict) and all(is_number(number) for number in value.values()))


def _word_or_numbers(*words: str, one: bool = True) -> Rule:
    """A word, a number for each type, or (``one``) a number for all."""
    expected = " | ".join((*words, *(["number"] if one else []), "{type: number}"))
    return Rule(expected, lambda v: v in words or (_is_number_or_map(v) and (one or isinstance(v, dict))), words)


def _per_pair(value: Any) -> bool:
    return all(isinstance(row, dict) and all(is_number(x) and x > 0 for x in row.values()) for row in value.values())


COUNT = Rule("a whole number of at least 1", _is_count)
COUNT_OR_NULL = Rule("a whole number of at least 1, or null", lambda v: v is None or _is_count(v))
WIDTHS = Rule("a list of whole numbers of at least 1", lambda v: _is_counts(v, 1))
LIMIT = Rule("a whole number of at least 1, or -1: no limit", lambda v: v == -1 or _is_count(v))
POSITIVE = Rule("a number above 0", lambda v: v > 0)
NOT_NEGATIVE = Rule("a number of at least 0", lambda v: v >= 0)
SHARE = Rule("a whole number of frames, a fraction of at least 0 and below 1, or rest", _is_share)
SEED = Rule("a whole number from 0 to 4294967295", lambda v: 0 <= v < 2**32)
LENGTHS = ("Angstrom", "Bohr", "nm")
ENERGIES = ("eV", "meV", "Hartree", "Rydberg", "kcal/mol", "kJ/mol")
FORCES = ("auto", *(f"{energy}/{length}" for energy in ENERGIES for length in LENGTHS))

LOGGERS = ("csv", "tensorboard", "wandb")

RULES: Mapping[str, Rule] = {
    "seed": SEED,
    "kernels": Rule("auto | reference | NAME | {operator: NAME}", lambda v: isinstance(v, (str, dict))),
    "loggers": Rule("a list of csv, tensorboard and wandb", lambda v: set(v) <= set(LOGGERS), LOGGERS),
    "run.if_exists": one_of("resume", "new", "error"),
    "run.dir": Rule(
        "a folder name without ${now:} and ${hydra...}: every process of a run must find the same folder, and the same "
        "command must resume it",
        lambda v: "${now" not in v and "${hydra" not in v,
    ),
    "data.path": Rule("a file name or a list of file names", _is_files),
    "data.val_path": Rule("a file name, a list of file names, or null", lambda v: v is None or _is_files(v)),
    "data.index": Rule(
        'an ASE slice such as ":", "0:100" or "::2"',
        lambda v: re.fullmatch(r"(-?\d+)?(:(-?\d+)?(:(-?[1-9]\d*)?)?)?", v) is not None and v != "",
    ),
    "data.split.train": SHARE,
    "data.split.val": SHARE,
    "data.split.test": SHARE,
    "data.split.by": one_of("random", "order", "group", "file"),
    "data.split.seed": SEED,
    "data.units.length": one_of(*LENGTHS),
    "data.units.energy": one_of(*ENERGIES),
    "data.units.forces": one_of(*FORCES),
    "data.units.stress": one_of("eV/Angstrom^3", "GPa", "kbar", "Hartree/Bohr^3"),
    "data.units.stress_sign": one_of("tension_positive", "compression_positive"),
    "data.batch.by": one_of("structures", "atoms", "edges"),
    "data.batch.size": COUNT,
    "data.batch.eval_size": COUNT,
    "data.batch.max_edges": COUNT_OR_NULL,
    "data.workers": Rule("a whole number of at least 0", lambda v: _is_count(v, 0)),
    "model.cutoff": POSITIVE,
    "model.pair_cutoffs": Rule("{centre: {neighbour: cut-off above 0}}", _per_pair),
    "model.types": Rule(
        "auto, or a list of type names", lambda v: v == "auto" or (isinstance(v, list) and _is_files(v))
    ),
    "model.dtype": one_of("float32", "float64"),
    "model.atomic_energies": _word_or_numbers("least_squares", "isolated_atoms", "mean", "zero", one=False),
    "model.energy_scale": _word_or_numbers("forces_rms", "per_atom_energy_std"),
    "model.l_max": Rule("a whole number of at least 0", lambda v: _is_count(v, 0)),
    "model.num_layers": COUNT,
    "model.num_features": Rule(
        "a whole number of at least 1, or a list with one for each l", lambda v: _is_count(v) or _is_counts(v)
    ),
    "model.type_embedding_dim": Rule("a whole number of at least 1, or auto", lambda v: v == "auto" or _is_count(v)),
    "model.radial_mlp": WIDTHS,
    "model.readout_mlp": WIDTHS,
    "model.num_bessels": COUNT,
    "model.polynomial_cutoff_p": Rule("a whole number of at least 2", lambda v: _is_count(v, 2)),
    "model.nonlinearity": one_of("silu", "mish", "gelu", "none"),
    "model.readout_nonlinearity": one_of("auto", "silu", "mish", "gelu", "none"),
    "model.avg_num_neighbors_of": one_of("receiver", "sender"),
    "model.avg_num_neighbors": _word_or_numbers("auto", "auto_per_type"),
    **{f"training.loss.{term}.weight": NOT_NEGATIVE for term in ("energy", "forces", "stress")},
    **{f"training.loss.{term}.delta": POSITIVE for term in ("energy", "forces", "stress")},
    "training.optimizer.lr": POSITIVE,
    "training.scheduler.interval": one_of("epoch", "step"),
    "training.ema_decay": Rule("a number between 0 and 1, or null", lambda v: v is None or 0 < v < 1),
    "training.gradient_clip": Rule("a number above 0, or null", lambda v: v is None or v > 0),
    "training.early_stopping_patience": COUNT_OR_NULL,
    "training.checkpoint_every": COUNT,
    "training.keep_every": COUNT_OR_NULL,
    "training.compile_check_every": Rule("a whole number of at least 0", lambda v: _is_count(v, 0)),
    "training.cuda_graphs": Rule("auto | true | false", lambda v: v == "auto" or isinstance(v, bool)),
    "training.recompute_weights": Rule("auto | true | false", lambda v: v == "auto" or isinstance(v, bool)),
    "training.matmul_precision": one_of("float32", "tf32", "bf16"),
    "trainer.accelerator": one_of("auto", "cpu", "cuda"),
    "trainer.devices": Rule("a whole number of at least 1, or auto", lambda v: v == "auto" or _is_count(v)),
    "trainer.num_nodes": COUNT,
    "trainer.rank_timeout": POSITIVE,
    "trainer.max_epochs": LIMIT,
    "trainer.max_steps": LIMIT,
    "trainer.max_time": Rule(
        "DD:HH:MM:SS or null", lambda v: v is None or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", v) is not None
    ),
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.log_every_n_steps": COUNT,
    "trainer.limit_train_batches": Rule(
        "a whole number of at least 1, or a fraction above 0 and at most 1.0",
        lambda v: _is_count(v) or (isinstance(v, float) and 0 < v <= 1),
    ),
}
"""Values that a key accepts, by dotted key. Names of the registry (models, optimizers ...) are checked against it."""

MOVED: Mapping[str, str] = {
    "trainer.precision": "model.dtype",
    "trainer.accumulate_grad_batches": "data.batch.size, of a whole optimizer step,",
    "trainer.gradient_clip_val": "training.gradient_clip",
    "trainer.gradient_clip_algorithm": "training.gradient_clip",
    "trainer.callbacks": "training.callbacks",
    "trainer.logger": "loggers",
    "trainer.default_root_dir": "run.dir",
    "trainer.enable_checkpointing": "training.checkpoint_every",
    "trainer.enable_model_summary": "--dry-run, which prints the model's size",
    "trainer.limit_val_batches": "data.split.val",
    "trainer.val_check_interval": "trainer.check_val_every_n_epoch",
    "trainer.inference_mode": "nothing: forces need gradients, so it is always off",
}
"""Lightning's names that are not ours, and the key that does it here."""
