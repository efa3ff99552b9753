"""A System of which the model computes everything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import openmm
from openmm import app

from nequip_openmm import pythonforce, torchforce
from nequip_openmm.errors import OpenMMError, as_openmm
from nequip_openmm.prepare import Prepared, prepare
from nequip_openmm.region import Types

Backend = Literal["auto", "python", "torchforce"]
BACKENDS = {"auto": pythonforce.of_prepared, "python": pythonforce.of_prepared, "torchforce": torchforce.of_prepared}
"""How a model becomes a force. auto: a PythonForce, which every OpenMM has."""


def make_force(ready: Prepared, backend: str) -> Any:
    """The force of a backend.

    Raises:
        OpenMMError: there is no such backend, or its plugin does not work here.
    """
    if backend not in BACKENDS:
        raise OpenMMError(f"There is no backend {backend!r}. Expected one of {', '.join(BACKENDS)}.")
    return BACKENDS[backend](ready)


@as_openmm()
def create_system(
    topology: app.Topology,
    model: str | Path,
    backend: Backend = "auto",
    *,
    keep_molecules: bool = True,
    remove_cm_motion: bool = True,
    periodic: bool | None = None,
    lambda_name: str | None = None,
    types: Types = None,
    device: str = "auto",
    skin: float = 1.0,
    embed: bool = True,
) -> openmm.System:
    """The system of a topology with a model. Without constraints: use a timestep of about 0.5 fs.

    Args:
        topology: atoms, bonds, box. Particles without an element (virtual sites) stay where they are, unseen.
        model: a compiled file (.nequip.pt2); a package, checkpoint or run's folder is compiled first.
        backend: auto, python (a PythonForce), torchforce (needs the plugin openmm-torch).
        keep_molecules: whether OpenMM is told of the topology's bonds, by a force of strength zero, so that the
            barostat scales, and trajectories wrap, whole molecules.
        remove_cm_motion: whether a CMMotionRemover is added.
        periodic, lambda_name, types, device, skin, embed: see `nequip_openmm.python_force`.

    Raises:
        OpenMMError: one of these can not be used.
    """
    ready = prepare(
        model,
        topology,
        atoms=None,
        periodic=periodic,
        lambda_name=lambda_name,
        types=types,
        device=device,
        skin=skin,
        embed=embed,
    )
    system = openmm.System()
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    for atom in topology.atoms():
        system.addParticle(0 if atom.element is None else atom.element.mass)
    system.addForce(make_force(ready, backend))
    if keep_molecules:
        add_molecules(system, topology)
    if remove_cm_motion:
        system.addForce(openmm.CMMotionRemover())
    return system


def add_molecules(system: openmm.System, topology: app.Topology, atoms: Iterable[int] | None = None) -> None:
    """Tell OpenMM what belongs together, by bonds of strength zero: they add nothing to energy and forces.

    Args:
        system: gets the force.
        topology: its bonds.
        atoms: only bonds between these; None: all.
    """
    among = None if atoms is None else set(atoms)
    force = openmm.HarmonicBondForce()
    force.setName("Molecules")
    for bond in topology.bonds():
        i, j = bond[0].index, bond[1].index
        if among is None or (i in among and j in among):
            force.addBond(i, j, 0.1, 0.0)
    if force.getNumBonds():
        system.addForce(force)
