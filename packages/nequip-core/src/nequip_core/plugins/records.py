"""Records that plugins return from their hooks.

A record names code by ``"package.module:attribute"`` (`Ref`), imported on first use, so that listing plugins imports
no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nequip_core.errors import PluginError

API = 1
"""Number of the plugin interface. A plugin states the number it was written for as ``NEQUIP_PLUGIN_API``."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A Python object named ``"package.module:attribute"``, imported on first use."""

    path: str

    def __post_init__(self) -> None:
        module, colon, attribute = self.path.partition(":")
        if not (module and colon and attribute):
            raise PluginError(f"Ref({self.path!r}) names no object. Expected 'package.module:attribute'.")

    def load(self) -> Any:
        """Import the module and return the attribute."""
        module, _, attribute = self.path.partition(":")
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            raise PluginError(f"A plugin names {self.path!r}, which can not be imported: {error}.") from error
        try:
            return getattr(loaded, attribute)
        except AttributeError as error:
            raise PluginError(f"A plugin names {self.path!r}, which does not exist: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """An architecture.

    ``config``: dataclass derived from `nequip_core.models.base.ModelConfig`.
    ``build(config, info, ops)``: an `nequip_core.models.base.Architecture`.
    ``tiny``: the smallest useful values of the config's own fields, for tests.
    ``reference``: DOI or arXiv number of the paper.
    ``from_published(options, weights, versions)``: a model of the published packages as keys of ``config`` and a state
    dict; see `nequip_core.models.published`. Absent: not supported.
    ``published``: the model builders of the published packages that ``from_published`` takes, by their last name.
    """

    name: str
    config: Ref
    build: Ref
    tiny: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    from_published: Ref | None = None
    published: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelEntry:
    """An implementation of an operator contract of `nequip_core.ops.contracts`.

    ``make(spec, dtype, device)``: the callable. ``refuses(spec, dtype, device)``: a reason, or None when it can serve.
    ``derivatives``: how often it can be differentiated; ``auto`` takes what has the two of training, and for a compiled
    file what has the one of forces.
    ``auto``: whether it may be taken without being named, as what nobody has measured should not.
    """

    name: str
    op: str
    make: Ref
    refuses: Ref
    devices: frozenset[str]
    dtypes: frozenset[str]
    derivatives: Literal[0, 1, 2]
    exportable: bool
    libraries: tuple[str, ...] = ()
    auto: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborListEntry:
    """A neighbour list. ``make(cutoff, skin)`` returns an `nequip_core.neighbors.NeighborList`.

    ``batched``: what ``make`` returns also has ``pairs(positions, cells, pbc, atoms)``, which takes the tensors of many
    structures on one of ``devices`` as `nequip_core.neighbors.DeviceNeighborList` does. With ``fixed`` too, its
    lists are recorded where steps are.
    """

    name: str
    make: Ref
    devices: frozenset[str]
    batched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEntry:
    """What an exported model reads and writes for one engine.

    ``inputs``/``outputs``: names in order. ``dynamic``: names of the axes whose size may change.
    ``prepare(graph)``: the input tensors of a graph, in the order of ``inputs``.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    prepare: Ref
    units: Mapping[str, str]
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderEntry:
    """A reader of structures. ``open(path, index, keys, units)`` yields `nequip_core.structure.Structure`."""

    name: str
    suffixes: tuple[str, ...]
    open: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEntry:
    """A named part of training: strategy, loss function, optimizer or scheduler, made by ``make``.

    A strategy is made from the torch device of this process and `nequip_core.training.ranks.Ranks`.
    """

    kind: Literal["strategy", "loss", "optimizer", "scheduler"]
    name: str
    make: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """A code that runs our models. ``check()`` returns ``(usable, sentence)``; ``example``: the lines a user types."""

    name: str
    target: str
    check: Ref
    example: str
    docs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEntry:
    """A command ``nequip NAME``. ``run(argv)`` returns the exit code."""

    name: str
    summary: str
    run: Ref


def mistakes(record: object) -> list[str]:
    """What is wrong with the fields of a record, by their annotations; empty when nothing is."""
    if not is_dataclass(record) or isinstance(record, type):
        return []
    hints = get_type_hints(type(record))
    return [
        f"{one.name} is {getattr(record, one.name)!r}, expected {hints[one.name]}"
        for one in fields(record)
        if not _fits(getattr(record, one.name), hints[one.name])
    ]


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin in (tuple, frozenset):
        return isinstance(value, origin) and all(_fits(item, arguments[0]) for item in value)
    return isinstance(value, origin or hint)
