"""What the plugin offers: one record of every hook."""

from __future__ import annotations

from collections.abc import Iterable

from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import (
    CommandEntry,
    EngineEntry,
    KernelEntry,
    ModelEntry,
    NeighborListEntry,
    ReaderEntry,
    Ref,
    TargetEntry,
    TrainingEntry,
)

NEQUIP_PLUGIN_API = 1


@hookimpl
def nequip_models() -> Iterable[ModelEntry]:
    """A learnable pair potential."""
    yield ModelEntry(
        name="toy", config=Ref("nequip_toy.model:ToyConfig"), build=Ref("nequip_toy.model:build"), tiny={"num_basis": 4}
    )


@hookimpl
def nequip_kernels() -> Iterable[KernelEntry]:
    """The reference under another name."""
    yield KernelEntry(
        name="toy",
        op="nequip.convolution/1",
        make=Ref("nequip_toy.parts:make_convolution"),
        refuses=Ref("nequip_toy.parts:refuses"),
        devices=frozenset({"cpu", "cuda"}),
        dtypes=frozenset({"float32", "float64"}),
        derivatives=2,
        exportable=True,
    )


@hookimpl
def nequip_neighbor_lists() -> Iterable[NeighborListEntry]:
    """matscipy's under another name."""
    yield NeighborListEntry(name="toy", make=Ref("nequip_toy.parts:make_neighbor_list"), devices=frozenset({"cpu"}))


@hookimpl
def nequip_export_targets() -> Iterable[TargetEntry]:
    """Energies and forces only."""
    yield TargetEntry(
        name="toy",
        inputs=(
            "positions",
            "types",
            "edge_index",
            "edge_shift",
            "structure",
            "structure_ptr",
            "row_ptr",
            "by_neighbor",
            "neighbor_ptr",
            "local",
        ),
        outputs=("atomic_energy", "forces"),
        dynamic=("structures", "atoms", "edges"),
        prepare=Ref("nequip_core.export.target:prepare"),
        units={"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom"},
    )


@hookimpl
def nequip_data_readers() -> Iterable[ReaderEntry]:
    """A text format: see nequip_toy.reader."""
    yield ReaderEntry(name="toy", suffixes=(".toy",), open=Ref("nequip_toy.reader:open_toy"))


@hookimpl
def nequip_training() -> Iterable[TrainingEntry]:
    """A loss function."""
    yield TrainingEntry(kind="loss", name="toy_log_cosh", make=Ref("nequip_toy.parts:log_cosh"))


@hookimpl
def nequip_engines() -> Iterable[EngineEntry]:
    """An engine that is always there."""
    yield EngineEntry(
        name="toy", target="toy", check=Ref("nequip_toy.parts:check"), example="nequip toy-hello", docs="README.md"
    )


@hookimpl
def nequip_config_modules() -> Iterable[str]:
    """The package with the preset model/toy_fine.yaml."""
    return ("nequip_toy.groups",)


@hookimpl
def nequip_commands() -> Iterable[CommandEntry]:
    """A greeting."""
    yield CommandEntry(name="toy-hello", summary="greet somebody", run=Ref("nequip_toy.hello:run"))
