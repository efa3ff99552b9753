"""What the plugin offers to nequip-core."""

from __future__ import annotations

from collections.abc import Iterable

from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import CommandEntry, EngineEntry, Ref, TargetEntry

NEQUIP_PLUGIN_API = 1


@hookimpl
def nequip_export_targets() -> Iterable[TargetEntry]:
    """Energies and forces; OpenMM asks for no virial, other users of the file do."""
    yield TargetEntry(
        name="openmm",
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
        outputs=("atomic_energy", "forces", "virial"),
        dynamic=("structures", "atoms", "edges"),
        prepare=Ref("nequip_core.export.target:prepare"),
        units={"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom", "virial": "eV"},
    )


@hookimpl
def nequip_engines() -> Iterable[EngineEntry]:
    """OpenMM."""
    yield EngineEntry(
        name="openmm",
        target="openmm",
        check=Ref("nequip_openmm.check:check"),
        example='import nequip_openmm\nsystem = nequip_openmm.create_system(pdb.topology, "MODEL")',
        docs="docs/engines/openmm.md",
    )


@hookimpl
def nequip_commands() -> Iterable[CommandEntry]:
    """``nequip openmm``."""
    yield CommandEntry(
        name="openmm",
        summary="a model for OpenMM's TorchForce, dynamics in OpenMM, and whether OpenMM can run here",
        run=Ref("nequip_openmm_plugin.cli:run"),
    )
