"""A training config of the published nequip as one of ours. What has no counterpart is listed, never lost in silence.

Names in the source (``_target_``) are text here: nothing is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nequip_core.errors import ConfigError, InputError
from nequip_core.export.published import DISTRIBUTIONS, elements_of_transforms
from nequip_core.plugins.manager import Registry, load_registry
from nequip_core.plugins.records import ModelEntry
from nequip_core.units import ENERGY

STATISTICS = {
    "num_neighbors_mean": "auto",
    "per_type_num_neighbors_mean": "auto_per_type",
    "per_atom_energy_mean": "mean",
    "forces_rms": "forces_rms",
    "per_type_forces_rms": "forces_rms",
    "per_atom_energy_std": "per_atom_energy_std",
}
"""Statistics of the training set, and our words for them."""

NEARLY = {"per_type_forces_rms": "the energy scale is one number here, forces_rms of all types"}
"""Words that say less than the statistic."""

LOSSES = {"EnergyForceLoss": ("energy", "forces"), "EnergyForceStressLoss": ("energy", "forces", "stress")}
LOSSES |= {"EnergyOnlyLoss": ("energy",)}

OPTIMIZERS = {"Adam": "adam", "AdamW": "adamw", "SGD": "sgd"}
SCHEDULERS = {"ReduceLROnPlateau": "plateau", "CosineAnnealingLR": "cosine", "StepLR": "step"}
ACCELERATORS = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "auto": "auto"}
SAME = (
    "max_epochs",
    "max_steps",
    "max_time",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "limit_train_batches",
    "deterministic",
    "enable_progress_bar",
)
"""Trainer's keys of the same name and meaning."""

NOT_NEEDED = {
    "run": "all stages run",
    "data._target_": "",
    "data.stats_manager": "statistics are always made",
    "data.train_dataloader._target_": "",
    "data.train_dataloader.shuffle": "",
    "data.val_dataloader": "",
    "data.test_dataloader": "",
    "trainer._target_": "",
    "trainer.enable_checkpointing": "",
    "training_module._target_": "",
    "training_module.train_metrics": "all metrics are always reported",
    "training_module.test_metrics": "",
    "training_module.loss._target_": "",
    "training_module.lr_scheduler.monitor": "training.monitor",
    "training_module.lr_scheduler.scheduler._target_": "",
    "global_options.allow_tf32": "",
}
"""Keys whose purpose is served without one of ours."""

HYDRA = re.compile(r"\$\{(hydra|now):[^}]*\}")
"""Its folders and times, which name nothing here."""

KCAL = "kcal/mol"

Block = dict[str, Any]


class Source:
    """A nested config from which keys are taken; what is left at the end has no counterpart."""

    def __init__(self, content: Block) -> None:
        self.content = content

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key, which is gone afterwards."""
        *blocks, last = key.split(".")
        place: Any = self.content
        for name in blocks:
            place = place.get(name) if isinstance(place, dict) else None
        return place.pop(last, default) if isinstance(place, dict) else default

    def left(self) -> list[str]:
        """``key: value`` of what nobody took."""
        return [f"{key}: {value!r}" for key, value in _flat(self.content)]


def convert_config(path: str | Path, registry: Registry | None = None) -> tuple[str, list[str]]:
    """Our YAML, and a line for each key of the source that has no counterpart.

    Args:
        path: of the published config; Hydra's ``defaults`` are not followed.
        registry: whose models can be converted; the installed ones unless given.

    Raises:
        ConfigError: it is no such config; a reference in it can not be resolved.
        InputError: an option of the model has no counterpart.
    """
    registry = load_registry() if registry is None else registry
    content = _resolved(Path(path))
    notes = [
        f"${{training_data_stats:{name}}}: {text}" for name, text in NEARLY.items() if name in Path(path).read_text()
    ]
    # Keys that hold values for others; where they were used they are resolved.
    source = Source({key: value for key, value in content.items() if key in TOP})
    model = _model(Path(path), source, registry)
    ours: Block = {
        "seed": int(source.take("training_module.model.seed", 0)),
        "loggers": _loggers(source),
        "data": _data(source),
        "model": model,
        "training": _training(source),
        "trainer": _trainer(source),
    }
    source.take("training_module.model")
    if source.take("training_module.val_metrics") is not None:
        notes.append("training_module.val_metrics: best.ckpt follows training.monitor, by default val_loss")
    if source.take("global_options.allow_tf32", False):
        notes.append("global_options.allow_tf32: true")
    for key in NOT_NEEDED:
        source.take(key)
    name = ours["model"].pop("name")
    body = yaml.safe_dump(ours, sort_keys=False, default_flow_style=None, width=120)
    text = f"# From {Path(path).name}, a config of the published nequip.\ndefaults:\n  - base\n  - model: {name}\n"
    return f"{text}  - _self_\n\n{body}", source.left() + notes


TOP = ("run", "data", "trainer", "training_module", "global_options")


def _resolved(path: Path) -> Block:
    """The file with its references replaced: by values, by our words for statistics, by "." for Hydra's folder."""
    resolvers: dict[str, Callable[..., Any]] = {
        "int_div": lambda a, b: int(a) // int(b),
        "int_mul": lambda a, b: int(a) * int(b),
        "concat_lists": lambda a, b: [*a, *b],
        "list_to_identity_dict": lambda names: {name: name for name in names},
        "list_to_constant_dict": lambda names, value: dict.fromkeys(names, value),
        "training_data_stats": _statistic,
    }
    try:
        text = HYDRA.sub(".", path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    before = {name for name in resolvers if OmegaConf.has_resolver(name)}
    for name, resolver in resolvers.items():
        if name not in before:
            OmegaConf.register_new_resolver(name, resolver)
    try:
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can not be read: {error}") from error
    finally:
        for name in resolvers.keys() - before:
            OmegaConf.clear_resolver(name)
    if not isinstance(content, dict) or not {"data", "training_module"} <= content.keys():
        raise ConfigError(
            f"{path} is no training config of the published nequip, 0.16 or later: expected the blocks data, trainer "
            "and training_module."
        )
    return {str(key): value for key, value in content.items()}


def _statistic(name: str) -> str:
    if name not in STATISTICS:
        raise ConfigError(
            f"The config uses the statistic {name}, which has no counterpart. These have: {', '.join(STATISTICS)}."
        )
    return STATISTICS[name]


def _model(path: Path, source: Source, registry: Registry) -> Block:
    options = dict(source.content["training_module"].get("model") or {})
    target = str(options.pop("_target_", "?"))
    name = target.rpartition(".")[2]
    found = [entry for entry in registry.models.values() if name in entry.published]
    if not found:
        distribution = DISTRIBUTIONS.get(target.partition(".")[0])
        hint = f" pip install --find-links dist {distribution}" if distribution else ""
        raise InputError(f"{path}: no installed plugin can convert training_module.model of {target}.{hint}")
    keys = _keys(found[0], options, source.content.get("data") or {})
    if _energy_unit(options) is not None:
        for key in ("atomic_energies", "energy_scale"):
            keys[key] = _in_ev(keys[key], ENERGY[KCAL])
    return {"name": found[0].name, **keys}


def _energy_unit(options: Mapping[str, Any]) -> str | None:
    """Of the data, where the model says it: its ZBL is in units of LAMMPS' name, "metal" (eV) or "real"."""
    pair = options.get("pair_potential")
    return KCAL if isinstance(pair, Mapping) and pair.get("units") == "real" else None


def _in_ev(value: Any, factor: float) -> Any:
    """Numbers in another unit; our words for statistics stay."""
    if isinstance(value, Mapping):
        return {name: _in_ev(one, factor) for name, one in value.items()}
    return value * factor if isinstance(value, (int, float)) else value


def _keys(entry: ModelEntry, options: Block, data: Block) -> Block:
    assert entry.from_published is not None
    config: Block = entry.from_published.load()(options, {}, {"nequip": "0.19.1"}).config
    elements = {**config.get("elements", {}), **elements_of_transforms(data, config["types"])}
    return {**config, **({"elements": elements} if elements else {})}


def _data(source: Source) -> Block:
    data: Block = {"path": "???"}
    split = source.take("data.split_dataset")
    train, val, test = (source.take(f"data.{part}_file_path") for part in ("train", "val", "test"))
    if isinstance(split, list) and len(split) == 1:
        split = split[0]
    if isinstance(split, dict) and train is None:
        data["path"] = split.get("file_path", "???")
        data["split"] = {part: split[part] for part in ("train", "val", "test") if part in split}
    elif split is not None:
        source.content["data"]["split_dataset"] = split
    if train is not None:
        data["path"] = train
        data["split"] = {"train": "rest", "val": 0, "test": 0} if val is not None else {}
    if val is not None:
        data["val_path"] = val
    if test is not None:
        data["test_paths"] = test if isinstance(test, list) else [test]
    sizes = source.take("data.train_val_split")
    if isinstance(sizes, list) and len(sizes) == 2:
        data["split"] = dict(zip(("train", "val"), sizes, strict=True))
    data.setdefault("split", {})["seed"] = int(source.take("data.seed", 0))
    unit = _energy_unit(source.content["training_module"].get("model") or {})
    if unit is not None:
        data["units"] = {"energy": unit}
    # Their mapping goes from the name in the file to the quantity.
    quantities = {"total_energy": "energy", "forces": "forces", "stress": "stress", "virial": "virial"}
    mapping = source.take("data.key_mapping") or {}
    keys = {quantities[to]: name for name, to in mapping.items() if to in quantities}
    if keys:
        data["keys"] = keys
    index = (source.take("data.ase_args") or {}).get("index")
    if index is not None:
        data["index"] = str(index)
    batch = {
        "size": int(source.take("data.train_dataloader.batch_size", 1)),
        "eval_size": source.take("data.val_dataloader.batch_size"),
    }
    data["batch"] = {key: value for key, value in batch.items() if value is not None}
    data["workers"] = int(source.take("data.train_dataloader.num_workers", 0))
    kept = [item for item in source.take("data.transforms") or [] if not _is_served(item)]
    if kept:
        source.content["data"]["transforms"] = kept
    return data


def _is_served(transform: Mapping[str, Any]) -> bool:
    name = str(transform.get("_target_", "")).rpartition(".")[2]
    return name in ("ChemicalSpeciesToAtomTypeMapper", "NeighborListTransform")


def _training(source: Source) -> Block:
    module = str((source.content["training_module"]).get("_target_", "")).rpartition(".")[2]
    training: Block = {"loss": _loss(source), "optimizer": _optimizer(source)}
    scheduler = _scheduler(source)
    if scheduler is not None:
        training["scheduler"] = scheduler
    decay = source.take("training_module.ema_decay", 0.999)
    training["ema_decay"] = decay if module.startswith("EMA") else None
    training["gradient_clip"] = source.take("trainer.gradient_clip_val")
    for callback in _pop_named(
        source, "trainer.callbacks", ("EarlyStopping", "ModelCheckpoint", "LearningRateMonitor")
    ):
        if callback["_target_"].endswith("EarlyStopping"):
            training["early_stopping_patience"] = callback.pop("patience", 3)
            rest = {key: value for key, value in callback.items() if key not in ("_target_", "monitor", "mode")}
            if rest:
                source.content["trainer"]["EarlyStopping"] = rest
    return training


def _loss(source: Source) -> Block:
    """Their coefficients are divided by their sum."""
    name = str((source.content["training_module"].get("loss") or {}).get("_target_", "")).rpartition(".")[2]
    if name not in LOSSES:
        return {}
    given = source.take("training_module.loss.coeffs") or {}
    terms = LOSSES[name]
    theirs = {"energy": "total_energy"}
    weights = {term: float(given.pop(theirs.get(term, term), 1.0) or 0.0) for term in terms}
    if given:
        source.content["training_module"]["loss"]["coeffs"] = given
    total = sum(weights.values()) or 1.0
    loss: Block = {term: {"weight": weights.get(term, 0.0) / total} for term in ("energy", "forces", "stress")}
    loss["energy"]["per_atom"] = bool(source.take("training_module.loss.per_atom_energy", True))
    return loss


def _optimizer(source: Source) -> Block:
    given = dict(source.take("training_module.optimizer") or {"_target_": "torch.optim.Adam"})
    target = str(given.pop("_target_"))
    groups = given.pop("param_groups", None)
    if groups is not None:
        source.content["training_module"]["optimizer"] = {"param_groups": groups}
    name = OPTIMIZERS.get(target.rpartition(".")[2], target) if target.startswith("torch.optim.") else target
    return {"name": name, "lr": float(given.pop("lr", 0.001)), "args": _numbers(given)}


def _scheduler(source: Source) -> Block | None:
    given = source.take("training_module.lr_scheduler.scheduler")
    if not isinstance(given, dict):
        return None
    given = dict(given)
    target = str(given.pop("_target_"))
    if "schedulers" in given:
        source.content["training_module"]["lr_scheduler"]["scheduler"] = {"_target_": target, **given}
        return None
    frequency = source.take("training_module.lr_scheduler.frequency", 1)
    if frequency != 1:
        source.content["training_module"]["lr_scheduler"]["frequency"] = frequency
    name = SCHEDULERS.get(target.rpartition(".")[2], target)
    return {
        "name": name,
        "interval": source.take("training_module.lr_scheduler.interval", "epoch"),
        "args": _numbers(given),
    }


def _numbers(given: Block) -> Block:
    """YAML 1.1 reads 1e-6 as text."""

    def number(value: Any) -> Any:
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    return {key: number(value) for key, value in given.items()}


def _trainer(source: Source) -> Block:
    trainer = {key: source.take(f"trainer.{key}") for key in SAME}
    accelerator = source.take("trainer.accelerator", "auto")
    if accelerator in ACCELERATORS:
        trainer["accelerator"] = ACCELERATORS[accelerator]
    else:
        source.content["trainer"]["accelerator"] = accelerator
    for key in ("devices", "num_nodes"):
        value = source.take(f"trainer.{key}", 1)
        if isinstance(value, int) and value >= 1:
            trainer[key] = value
        elif value != "auto":
            source.content["trainer"][key] = value
    return {key: value for key, value in trainer.items() if value is not None}


def _loggers(source: Source) -> list[str]:
    known = {"TensorBoardLogger": "tensorboard", "CSVLogger": "csv"}
    found = _pop_named(source, "trainer.logger", tuple(known))
    return sorted({known[item["_target_"].rpartition(".")[2]] for item in found}) or ["csv", "tensorboard"]


def _pop_named(source: Source, key: str, names: tuple[str, ...]) -> list[Block]:
    """Take the objects of these classes from a list (or a single one); leave the others."""
    given = source.take(key)
    items = given if isinstance(given, list) else [given] if isinstance(given, dict) else []
    fit = [item for item in items if str(item.get("_target_", "")).rpartition(".")[2] in names]
    rest = [item for item in items if item not in fit]
    if rest:
        block, _, last = key.rpartition(".")
        source.content[block][last] = rest
    return fit


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
