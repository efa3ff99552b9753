"""The hooks of a plugin, each with a whole example.

A plugin is a distribution with an entry point in the group ``nequip.plugins``. The entry point's name is the plugin's
name, its value a light module that holds hook implementations and the number of the interface it was written for::

    # pyproject.toml
    [project]
    dependencies = ["nequip-core>=0.1,<1"]

    [project.entry-points."nequip.plugins"]
    mine = "nequip_mine.plugin"

Every hook takes no argument and returns (or yields) records. A record names code as
``Ref("package.module:attribute")``, imported on first use: a plugin's module imports nothing but this one and
`nequip_core.plugins.records`, so that ``nequip --help`` and ``nequip plugins`` need no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from nequip_core.plugins.records import (
        CommandEntry,
        EngineEntry,
        KernelEntry,
        ModelEntry,
        NeighborListEntry,
        ReaderEntry,
        TargetEntry,
        TrainingEntry,
    )

PROJECT = "nequip"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def nequip_models() -> Iterable[ModelEntry]:
    """Architectures, chosen by ``model: NAME`` in a config.

    ``config`` is a dataclass derived from `nequip_core.models.base.ModelConfig` with a method
    ``message_passing_layers() -> int``; ``build(config, info, ops)`` returns a
    `nequip_core.models.base.Architecture`::

        from nequip_core.plugins.hookspecs import hookimpl
        from nequip_core.plugins.records import ModelEntry, Ref

        NEQUIP_PLUGIN_API = 1

        @hookimpl
        def nequip_models():
            yield ModelEntry(
                name="mine",
                config=Ref("nequip_mine.model:MineConfig"),
                build=Ref("nequip_mine.model:build"),
                tiny={"num_bessels": 4},
                reference="10.0000/the.doi.of.the.paper",
            )
    """
    raise NotImplementedError


@hookspec
def nequip_kernels() -> Iterable[KernelEntry]:
    """Implementations of the operator contracts of `nequip_core.ops.contracts`, chosen by ``kernels:`` in a config.

    ``make(spec, dtype, device)`` returns the callable; ``refuses(spec, dtype, device)`` a reason, or None::

        from nequip_core.plugins.hookspecs import hookimpl
        from nequip_core.plugins.records import KernelEntry, Ref

        NEQUIP_PLUGIN_API = 1

        @hookimpl
        def nequip_kernels():
            yield KernelEntry(
                name="mine",
                op="nequip.convolution/1",
                make=Ref("nequip_mine.convolution:make"),
                refuses=Ref("nequip_mine.convolution:refuses"),
                devices=frozenset({"cuda"}),
                dtypes=frozenset({"float32"}),
                derivatives=2,
                exportable=True,
                libraries=("triton",),
            )
    """
    raise NotImplementedError


@hookspec
def nequip_neighbor_lists() -> Iterable[NeighborListEntry]:
    """Neighbour lists, chosen by ``data.neighbor_list: NAME``.

    ``make(cutoff, skin)`` returns an `nequip_core.neighbors.NeighborList`::

        from nequip_core.plugins.hookspecs import hookimpl
        from nequip_core.plugins.records import NeighborListEntry, Ref

        NEQUIP_PLUGIN_API = 1

        @hookimpl
        def nequip_neighbor_lists():
            yield NeighborListEntry(name="mine", make=Ref("nequip_mine.neighbors:make"), devices=frozenset({"cpu"}))
    """
    raise NotImplementedError


@hookspec
def nequip_export_targets() -> Iterable[TargetEntry]:
    """What an exported model reads and writes for one engine, chosen by ``nequip compile --target NAME``.

    ``prepare(graph)`` returns the tensors named by ``inputs``, in that order::

        from nequip_core.plugins.hookspecs import hookimpl
        from nequip_core.plugins.records import Ref, TargetEntry

        NEQUIP_PLUGIN_API = 1

        @hookimpl
        def nequip_export_targets():
            yield TargetEntry(
                name="mine",
                inputs=(
                    "positions", "types", "edge_index", "edge_shift", "structure", "structure_ptr",
                    "row_ptr", "by_neighbor", "neighbor_ptr", "local",
                ),
                outputs=("atomic_energy", "forces"),
                dynamic=("structures", "atoms", "edges"),
                prepare=Ref("nequip_core.export.target:prepare"),
                units={"length": "Angstrom", "energy": "eV"},
            )
    """
    raise NotImplementedError


@hookspec
def nequip_data_readers() -> Iterable[ReaderEntry]:
    """Readers of structures, chosen by a file's suffix or ``data.format: NAME``.

    ``open(path, index, keys, units)`` yields `nequip_core.structure.Structure`::

        from nequip_core.plugins.hookspecs import hookimpl
        from nequip_core.plugins.records import ReaderEntry, Ref

        NEQUIP_PLUGIN_API = 1

        @hookimpl
        def nequip_data_readers():
            yield ReaderEntry(name="mine", suffixes=(".mine",), open=Ref("nequip_mine.reader:open_mine"))
    """
    raise NotImplementedError


@hookspec
def nequip_training() -> Iterable[TrainingEntry]:
    """Loss functions, optimizers, schedulers and strategies, chosen by their names under ``training`` and ``trainer``::

    from nequip_core.plugins.hookspecs import hookimpl
    from nequip_core.plugins.records import Ref, TrainingEntry

    NEQUIP_PLUGIN_API = 1

    @hookimpl
    def nequip_training():
        yield TrainingEntry(kind="loss", name="log_cosh", make=Ref("nequip_mine.loss:log_cosh"))
        yield TrainingEntry(kind="optimizer", name="lion", make=Ref("nequip_mine.optimizers:lion"))
        yield TrainingEntry(kind="scheduler", name="warm_up", make=Ref("nequip_mine.optimizers:warm_up"))
        yield TrainingEntry(kind="strategy", name="mine", make=Ref("nequip_mine.strategy:mine"))
    """
    raise NotImplementedError


@hookspec
def nequip_engines() -> Iterable[EngineEntry]:
    """Codes that run our models. ``check()`` returns ``(usable, sentence)``, which ``nequip doctor`` prints::

    from nequip_core.plugins.hookspecs import hookimpl
    from nequip_core.plugins.records import EngineEntry, Ref

    NEQUIP_PLUGIN_API = 1

    @hookimpl
    def nequip_engines():
        yield EngineEntry(
            name="mine",
            target="ase",
            check=Ref("nequip_mine.engine:check"),
            example="from nequip_mine.engine import run",
            docs="docs/engines/mine.md",
        )
    """
    raise NotImplementedError


@hookspec
def nequip_config_modules() -> Iterable[str]:
    """Importable packages of YAML groups that join the search path of configs, such as presets ``model/NAME.yaml``::

    from nequip_core.plugins.hookspecs import hookimpl

    NEQUIP_PLUGIN_API = 1

    @hookimpl
    def nequip_config_modules():
        return ("nequip_mine.groups",)
    """
    raise NotImplementedError


@hookspec
def nequip_commands() -> Iterable[CommandEntry]:
    """Commands ``nequip NAME``. ``run(argv)`` gets the arguments after the name and returns the exit code::

    from nequip_core.plugins.hookspecs import hookimpl
    from nequip_core.plugins.records import CommandEntry, Ref

    NEQUIP_PLUGIN_API = 1

    @hookimpl
    def nequip_commands():
        yield CommandEntry(name="mine", summary="what it does, in one line", run=Ref("nequip_mine.cli:run"))
    """
    raise NotImplementedError
