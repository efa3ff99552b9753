"""What the plugin offers to nequip-core. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import CommandEntry, EngineEntry, Ref, TargetEntry

NEQUIP_PLUGIN_API = 1


@hookimpl
def nequip_export_targets() -> Iterable[TargetEntry]:
    """Owned and ghost atoms, no shifts; energies, forces, and the virials of the whole and of each atom."""
    yield TargetEntry(
        name="lammps",
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
        outputs=("atomic_energy", "forces", "virial", "atomic_virial"),
        dynamic=("structures", "atoms", "edges"),
        prepare=Ref("nequip_core.export.target:prepare"),
        units={"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom", "virial": "eV"},
    )


@hookimpl
def nequip_engines() -> Iterable[EngineEntry]:
    """LAMMPS."""
    yield EngineEntry(
        name="lammps",
        target="lammps",
        check=Ref("nequip_lammps.check:check"),
        example="pair_style nequip\npair_coeff * * MODEL TYPES",
        docs="docs/engines/lammps.md",
    )


@hookimpl
def nequip_commands() -> Iterable[CommandEntry]:
    """``nequip lammps``."""
    yield CommandEntry(
        name="lammps",
        summary="the plugin for LAMMPS: build it, check a LAMMPS, print its folder",
        run=Ref("nequip_lammps.cli:run"),
    )
