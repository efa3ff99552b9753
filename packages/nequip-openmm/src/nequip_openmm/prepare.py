"""What every kind of force is made of: the model's file, the atoms that it sees, and the spec."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from openmm import app
from torch import Tensor

from nequip_openmm.errors import OpenMMError
from nequip_openmm.evaluate import key_of
from nequip_openmm.model_file import open_model
from nequip_openmm.region import Atoms, Region, Types, parents, region
from nequip_openmm.spec import Spec


class Prepared(NamedTuple):
    """The parts of a force.

    Attributes:
        spec: for all particles of the system.
        region: the atoms of the model.
        content: bytes of the model, or None: not embedded.
    """

    spec: Spec
    region: Region
    content: bytes | None

    @property
    def spec_of_region(self) -> Spec:
        """The spec of a force that gets the atoms of the model only."""
        return replace(self.spec, particles=len(self.region.types))

    @property
    def types(self) -> Tensor:
        """[n] type of each atom of the model."""
        return torch.from_numpy(self.region.types)

    @property
    def indices(self) -> Tensor:
        """[n] particles of the model; empty: all."""
        return torch.tensor(self.region.indices or (), dtype=torch.int64)


def prepare(
    model: str | Path,
    atoms_of: Atoms,
    *,
    atoms: Iterable[int] | None,
    periodic: bool | None,
    lambda_name: str | None,
    types: Types,
    device: str,
    skin: float,
    embed: bool,
    energy_only: bool = False,
    boxed: bool | None = None,
) -> Prepared:
    """The parts of a force; arguments as those of `nequip_openmm.python_force`, and whether there is a box.

    Raises:
        NequipError: one of them can not be used.
    """
    if skin < 0:
        raise OpenMMError(f"skin must be 0 Å or more, received {skin:g}.")
    if lambda_name is not None and not lambda_name.isidentifier():
        raise OpenMMError(f"{lambda_name!r} can not name a global parameter. Expected a word such as lambda_ml.")
    file = open_model(model, device)
    of = region(atoms_of, file.model.type_map, atoms=atoms, types=types)
    boxed = of.periodic if boxed is None else boxed
    if periodic is None and boxed is None:
        raise OpenMMError("A list of elements does not say whether there is a box. Set periodic to True or False.")
    if periodic and boxed is False:
        raise OpenMMError(
            "The model is to see periodic images, but the topology has no periodic box. Set one "
            "(topology.setPeriodicBoxVectors, or a CRYST1 record in the PDB file), or periodic to False."
        )
    sees_images = bool(boxed if periodic is None else periodic)
    unwrapped = not sees_images and bool(boxed)
    ready = Prepared(
        spec=Spec(
            path=str(file.path),
            sha256=file.sha256,
            device=str(file.model.device),
            particles=atoms_of.getNumAtoms() if isinstance(atoms_of, app.Topology) else len(atoms_of),
            periodic=sees_images,
            box=sees_images or unwrapped,
            parameter=lambda_name,
            energy_only=energy_only,
            skin=float(skin),
            parents=parents(len(of.types), of.bonds) if unwrapped else (),
            key="",
        ),
        region=of,
        content=file.content if embed else None,
    )
    return ready._replace(spec=replace(ready.spec, key=key_of(ready.types, ready.indices)))
