"""From a file, or a run's folder, to a potential that is ready to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from nequip_core.errors import ArtifactError, ConfigError, InputError
from nequip_core.export.compiled import CompiledPotential, Run, is_compiled, load_compiled, read_metadata
from nequip_core.export.package import Json, Members, Tensors, is_checkpoint, read_package
from nequip_core.models.base import EnergyModel, ModelConfig, ModelInfo, Settling
from nequip_core.models.build import build_model
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import Registry, load_registry
from nequip_core.plugins.records import ModelEntry
from nequip_core.potential import Potential
from nequip_core.structure import TypeMap

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""

CPU = torch.device("cpu")

Kind = Literal["checkpoint", "package", "compiled"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedModel:
    """A potential with what its file says about it.

    Attributes:
        potential: in evaluation mode, on ``device``; its weights ask for no gradients. Of a compiled file: its code.
        info: cut-offs, types, layers, dtype.
        type_map: from structures to type indices.
        config: the resolved model block.
        manifest: versions, units, licence, citations.
        data: the data it was trained on.
        metrics: of the file's weights, as in metrics.csv.
        path: the file that was read.
        kind: of the file.
        checkpoint: "best", "last" or another name where a run's folder was given, else None.
        weights: "ema" or "raw", the ones that were taken.
        hash: of the model block and these weights.
        device: where it is.
        kernels: {operator: {chosen, refused}}.
        n_parameters: of the architecture.
        atomic_energies: E0 by type, eV.
        energy_scale: by type, eV.
    """

    potential: Potential | CompiledPotential
    info: ModelInfo
    type_map: TypeMap
    config: Json
    manifest: Json
    data: Json
    metrics: Json
    path: Path
    kind: Kind
    checkpoint: str | None
    weights: Literal["ema", "raw"]
    hash: str
    device: torch.device
    kernels: Mapping[str, Mapping[str, Any]]
    n_parameters: int
    atomic_energies: Mapping[str, float]
    energy_scale: Mapping[str, float]

    @property
    def narrow(self) -> Run | None:
        """For `nequip_core.skin.SkinGraph`: what a compiled file for CUDA holds besides the model."""
        return self.potential.narrow if isinstance(self.potential, CompiledPotential) else None


def load_model(
    path: str | Path,
    *,
    checkpoint: str = "best",
    weights: Literal["ema", "raw"] = "ema",
    device: str | torch.device = "cpu",
    kernels: str | Mapping[str, str] = "auto",
    dtype: str | None = None,
    derivatives: Literal[1, 2] = 2,
    registry: Registry | None = None,
) -> LoadedModel:
    """Load a model from a run's folder, a checkpoint, a package or a compiled file.

    Nothing that the file names is imported. A compiled file has its weights, kernels and dtype inside: naming others
    is an error.

    Args:
        path: DIR means DIR/checkpoints/best.ckpt.
        checkpoint: which one of a run's folder: "best", "last", "epoch-000100".
        weights: "ema": the averaged ones where there are any; "raw": the trained ones.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        kernels: "auto", "reference", a kernel's name, or {operator: name}.
        dtype: "float32" or "float64"; None: the file's.
        derivatives: 1: of its predictions only forces and stress are asked for, no derivative of these or by weights;
            "auto" then knows more kernels. For models that are to be compiled.
        registry: of plugins; the installed ones unless given.

    Raises:
        ArtifactError: the file can not be read, lacks what was asked for, makes no model, or its hash is not that of
            its contents; the named kernel can not serve; a compiled file is for another machine.
        InputError: the device is not there.
    """
    if is_compiled(path):
        return _load_compiled(Path(path), weights=weights, device=device, kernels=kernels, dtype=dtype)
    registry = load_registry() if registry is None else registry
    where = resolve_device(device)
    folder = Path(path).is_dir()
    file = checkpoint_file(path, checkpoint) if folder else Path(path)
    members, kind = read_weights(file, weights)
    how: dict[str, Any] = {"kernels": kernels, "device": where, "dtype": dtype, "derivatives": derivatives}
    model, config, ops = model_of(file, members, registry, **how)
    types = model.info.types
    return LoadedModel(
        potential=Potential(model.to(where)).eval().requires_grad_(False),
        info=model.info,
        type_map=TypeMap(model.info.types, model.info.elements),
        config=asdict(config),
        manifest=members.manifest,
        data=members.data,
        metrics=members.metrics,
        path=file,
        kind="checkpoint" if is_checkpoint(file) else "package",
        checkpoint=checkpoint if folder else None,
        weights=kind,
        hash=members.manifest["model_hash"],
        device=where,
        kernels=ops.report,
        n_parameters=sum(parameter.numel() for parameter in model.architecture.parameters()),
        atomic_energies=dict(zip(types, model.shift.tolist(), strict=True)),
        energy_scale=dict(zip(types, model.scale.tolist(), strict=True)),
    )


def _load_compiled(
    path: Path,
    *,
    weights: str,
    device: str | torch.device,
    kernels: str | Mapping[str, str],
    dtype: str | None,
) -> LoadedModel:
    potential = load_compiled(path, resolve_device(device))
    metadata = potential.metadata
    for what, asked, inside in (
        ("kernels", kernels, "auto"),
        ("dtype", dtype, metadata.dtype),
        ("weights", weights, metadata.weights),
    ):
        # "ema", the default, means raw ones too where there are no others.
        if asked not in (None, "auto", "ema", inside):
            raise ArtifactError(
                f"{path} is compiled: its {what} can not be {asked} any more. Compile the model again with --{what}."
            )
    return _of_compiled(potential)


def inspect_model(
    path: str | Path, *, checkpoint: str = "best", weights: Literal["ema", "raw"] = "ema", registry: Registry
) -> LoadedModel:
    """A model to be read about, on the CPU; a compiled file may be for any machine, and its code is not loaded.

    Raises:
        ArtifactError: as for `load_model`.
    """
    if is_compiled(path):
        metadata = read_metadata(path)
        return _of_compiled(CompiledPotential(path, metadata, torch.device(metadata.device)))
    return load_model(path, checkpoint=checkpoint, weights=weights, registry=registry)


def _of_compiled(potential: CompiledPotential) -> LoadedModel:
    metadata = potential.metadata
    return LoadedModel(
        potential=potential,
        info=metadata.info,
        type_map=TypeMap(tuple(metadata.types), tuple(metadata.elements)),
        config=metadata.model,
        manifest=metadata.manifest,
        data=metadata.training_data,
        metrics=metadata.metrics,
        path=potential.path,
        kind="compiled",
        checkpoint=None,
        weights=metadata.weights,
        hash=metadata.model_hash,
        device=potential.device,
        kernels=metadata.kernels,
        n_parameters=metadata.n_parameters,
        atomic_energies=metadata.atomic_energies_eV,
        energy_scale=metadata.energy_scale_eV,
    )


def model_of(
    path: Path,
    members: Members,
    registry: Registry,
    *,
    kernels: str | Mapping[str, str] = "auto",
    device: torch.device = CPU,
    dtype: str | None = None,
    derivatives: Literal[1, 2] = 2,
) -> tuple[EnergyModel, ModelConfig, Ops]:
    """The model that a file's members make, on the CPU with operators for ``device``; its config; its operators.

    Raises:
        ArtifactError: no installed plugin has this architecture, or its weights do not fit its model block.
    """
    entry = _entry(path, members, registry)
    config = _config(path, members, entry)
    given = config.dtype
    config.dtype = dtype or given
    kind = getattr(torch, config.dtype)
    ops = Ops(registry.kernels, request=kernels, dtype=kind, device=device, derivatives=derivatives)
    model = _build(path, entry, config, ops)
    weights = members.weights if config.dtype == given else _cast(members.weights, model)
    _fill(path, model, weights)
    if isinstance(model.architecture, Settling):
        model.architecture.settle(ops)
    return model, config, ops


def _cast(weights: Tensors, model: EnergyModel) -> Tensors:
    """The weights in the dtypes of the model."""
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    return {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()}


def checkpoint_file(folder: str | Path, checkpoint: str) -> Path:
    """The file of a run's checkpoint.

    Raises:
        ArtifactError: the run has none of that name; says which there are.
    """
    path = Path(folder) / CHECKPOINTS / f"{checkpoint}.ckpt"
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.ckpt"))
        raise ArtifactError(
            f"{folder} holds no {CHECKPOINTS}/{checkpoint}.ckpt. "
            + (
                f"There are: {', '.join(there)}; choose one with --checkpoint (in Python, checkpoint=)."
                if there
                else "It is no run's folder, or the run has written no checkpoint yet."
            )
        )
    return path


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that is there; "auto" is CUDA where there is one, else the CPU.

    Raises:
        InputError: it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"There is no device {device!r}. Expected auto, cpu, cuda or cuda:N.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"There is no device {str(chosen)!r}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices here. Use --device cpu or auto, or see `nequip doctor`."
        )
    return chosen


def read_weights(path: Path, weights: Literal["ema", "raw"]) -> tuple[Members, Literal["ema", "raw"]]:
    """The members of a file with the weights that were asked for in their place, and which they are.

    Raises:
        ArtifactError: raw ones of a package that holds averaged ones only; all that `read_package` raises.
    """
    members = read_package(path)
    inside = members.manifest["weights"]
    if weights == "ema" or inside == "raw":
        return members, inside
    if not is_checkpoint(path):
        raise ArtifactError(
            f"{path} is a package of averaged weights (EMA); the raw ones are in the checkpoint that it was made from. "
            "Load that, or use --weights ema."
        )
    members = read_package(path, training=True)
    assert members.training is not None
    about = members.manifest | {"model_hash": members.manifest["raw_model_hash"], "weights": "raw"}
    return replace(members, manifest=about, weights=members.training.raw, training=None), "raw"


def _entry(path: Path, members: Members, registry: Registry) -> ModelEntry:
    name = members.model["name"]
    if name not in registry.models:
        raise ArtifactError(
            f"{path} holds a {name!r} model, which no installed plugin offers. It was written with "
            f"{members.manifest['model_from']}: pip install --find-links dist "
            f"{'=='.join(str(members.manifest['model_from']).split())}. Known here: {', '.join(registry.models)}."
        )
    return registry.models[name]


def _config(path: Path, members: Members, entry: ModelEntry) -> ModelConfig:
    cls = entry.config.load()
    unknown = sorted(members.model.keys() - {one.name for one in fields(cls)})
    if unknown:
        raise ArtifactError(
            f"{path}: its {entry.name!r} model has {', '.join(unknown)}, unknown to the installed plugin. It was "
            f"written with {members.manifest['model_from']}: install that version or a later one."
        )
    # A key that is newer than the file takes its default: by rule that is what files without it mean.
    return cast(ModelConfig, cls(**members.model))


def _build(path: Path, entry: ModelEntry, config: ModelConfig, ops: Ops) -> EnergyModel:
    try:
        # The random weights are overwritten; the caller's random numbers stay as they were.
        with torch.random.fork_rng(devices=[]):
            return build_model(entry, config, ops)
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _fill(path: Path, model: EnergyModel, weights: Tensors) -> None:
    expected = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    received = {name: (tuple(t.shape), t.dtype) for name, t in weights.items()}
    wrong = [
        f"{name}: expected {expected.get(name)}, received {received.get(name)}"
        for name in sorted(expected.keys() | received.keys())
        if expected.get(name) != received.get(name)
    ]
    if wrong:
        raise ArtifactError(f"{path}: its weights do not fit its model block. {'; '.join(wrong[:5])}.")
    model.load_state_dict(weights)
