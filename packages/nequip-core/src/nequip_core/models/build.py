"""A resolved config becomes a model. Everything that the training set decides is a number here."""

from __future__ import annotations

from typing import cast

from ase.data import chemical_symbols
from torch import nn

from nequip_core.errors import ConfigError
from nequip_core.models.base import ArchitectureConfig, EnergyModel, ModelConfig, ModelInfo, per_type
from nequip_core.models.zbl import ZBL
from nequip_core.ops.select import Ops
from nequip_core.plugins.records import ModelEntry

ELEMENTS = frozenset(chemical_symbols[1:])


def model_info(config: ModelConfig) -> ModelInfo:
    """The facts of a model with a resolved config.

    Raises:
        ConfigError: types that are no elements and have none declared; cut-offs that are not positive, name unknown
            types or exceed the largest; an unknown dtype.
    """
    types = tuple(config.types)
    unknown = [t for t in types if config.elements.get(t, t) not in ELEMENTS]
    if unknown:
        raise ConfigError(
            f"model.types: {unknown} are no element symbols. Say which element each is: model.elements: "
            f"{{{unknown[0]}: O}}."
        )
    if len(set(types)) != len(types) or not types:
        raise ConfigError(f"model.types must name at least one type, each once; received {list(types)}.")
    if not config.cutoff > 0:
        raise ConfigError(f"model.cutoff must be a positive distance in Å, received {config.cutoff}.")
    if config.dtype not in ("float32", "float64"):
        raise ConfigError(f"model.dtype must be float32 or float64, received {config.dtype!r}.")
    return ModelInfo(
        cutoff=float(config.cutoff),
        types=types,
        elements=tuple(config.elements.get(t, t) for t in types),
        pair_cutoffs=_pair_cutoffs(config, types),
        message_passing_layers=cast(ArchitectureConfig, config).message_passing_layers(),
        dtype=config.dtype,
    )


def build_model(entry: ModelEntry, config: ModelConfig, ops: Ops) -> EnergyModel:
    """A new model with random weights from torch's default generator, on the CPU, with its scale, shift and pair
    potentials.

    Args:
        entry: the architecture's record.
        config: resolved: ``types``, ``atomic_energies`` and so on are lists and numbers.
        ops: makes the heavy operators.
    """
    info = model_info(config)
    architecture: nn.Module = entry.build.load()(config, info, ops)
    # Geometry stays float64: only parameters, and tables that belong to the inner arithmetic, take the model's dtype.
    for parameter in architecture.parameters():
        parameter.data = parameter.data.to(info.torch_dtype)
    return EnergyModel(
        architecture,
        info,
        scale=per_type(config.energy_scale, info.types),
        shift=per_type(config.atomic_energies, info.types),
        train_scale=config.train_energy_scale,
        train_shift=config.train_atomic_energies,
        pair_potentials=(ZBL(info),) if config.zbl else (),
    )


def _pair_cutoffs(config: ModelConfig, types: tuple[str, ...]) -> tuple[tuple[float, ...], ...]:
    table = {centre: dict.fromkeys(types, float(config.cutoff)) for centre in types}
    for centre, row in config.pair_cutoffs.items():
        for neighbor, cutoff in row.items():
            for name in (centre, neighbor):
                if name not in table:
                    raise ConfigError(f"model.pair_cutoffs names {name!r}. The model's types are {list(types)}.")
            if not 0 < cutoff <= config.cutoff:
                raise ConfigError(
                    f"model.pair_cutoffs.{centre}.{neighbor} must be above 0 and at most model.cutoff "
                    f"({config.cutoff} Å); received {cutoff}."
                )
            table[centre][neighbor] = float(cutoff)
    return tuple(tuple(row.values()) for row in table.values())


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
