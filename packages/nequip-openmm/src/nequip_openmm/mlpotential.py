"""The potentials of openmm-ml: systems that are a model's altogether or in part (mixed ML/MM)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openmm
from openmm import app
from openmmml.mlpotential import MLPotentialImpl

from nequip_openmm.errors import OpenMMError, as_openmm
from nequip_openmm.prepare import prepare
from nequip_openmm.system import add_molecules, make_force

OF_OTHERS = {"mlLongRange", "linkAtomDistances"}
"""Arguments of createMixedSystem that are for the embedding; openmm-ml hands all to all."""


class CompiledPotential(MLPotentialImpl):  # type: ignore[misc]  # openmm-ml has no types
    """A model for ``MLPotential(name, modelPath=...)``.

    Args:
        name: under which openmm-ml knows it.
        modelPath: a compiled file (.nequip.pt2); a package, checkpoint or run's folder is compiled first.
        backend: auto, python, torchforce; see `nequip_openmm.create_system`.
        **defaults: of the options of `addForces`.
    """

    def __init__(
        self,
        name: str,
        modelPath: str | Path | None = None,
        backend: str = "auto",
        **defaults: Any,
    ) -> None:
        if modelPath is None:
            raise OpenMMError(f'Which model? Expected MLPotential("{name}", modelPath="FILE.nequip.pt2").')
        _only_known(defaults)
        self.name = name
        self.model = modelPath
        self.backend = backend
        self.defaults = defaults

    def getMLLongRange(self) -> bool:  # noqa: N802  # openmm-ml's name
        """Whether the model has interactions beyond a cut-off: no."""
        return False

    @as_openmm()
    def addForces(  # noqa: N802  # openmm-ml's name
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **options: Any,
    ) -> None:
        """Add the model's force; called by openmm-ml.

        Args:
            topology: of the system.
            system: gets the force. Its constraints are neither removed (openmm-ml does that) nor added to.
            atoms: of the model; None: all that have an element.
            forceGroup: of the force.
            **options: periodic, types, device, skin, embed as of `nequip_openmm.python_force`; keep_molecules as of
                `nequip_openmm.create_system`.

        Raises:
            OpenMMError: something can not be used.
        """
        given = {**self.defaults, **{name: one for name, one in options.items() if name not in OF_OTHERS}}
        _only_known(given)
        boxed = topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
        chosen = None if atoms is None else [int(atom) for atom in atoms]
        ready = prepare(
            self.model,
            topology,
            atoms=chosen,
            boxed=boxed,
            periodic=given.get("periodic"),
            lambda_name=None,
            types=given.get("types"),
            device=given.get("device", "auto"),
            skin=given.get("skin", 1.0),
            embed=given.get("embed", True),
        )
        force = make_force(ready, self.backend)
        force.setForceGroup(forceGroup)
        system.addForce(force)
        # Of an interpolated system openmm-ml asks for the forces alone, in an empty system.
        if given.get("keep_molecules", True) and system.getNumParticles():
            add_molecules(system, topology, chosen)
        _say_constraints(system, range(topology.getNumAtoms()) if chosen is None else chosen)


KNOWN = {"periodic", "types", "device", "skin", "embed", "keep_molecules"}


def _only_known(options: Iterable[str]) -> None:
    unknown = sorted(set(options) - KNOWN)
    if unknown:
        raise OpenMMError(
            f"{', '.join(unknown)} is no option of this potential. Expected some of modelPath, backend, "
            f"{', '.join(sorted(KNOWN))}; units need no scale, they stand in the model's file."
        )


def _say_constraints(system: openmm.System, atoms: Iterable[int]) -> None:
    region = set(atoms)
    pairs = (system.getConstraintParameters(n)[:2] for n in range(system.getNumConstraints()))
    constrained = sum(i in region and j in region for i, j in pairs)
    if constrained:
        warnings.warn(
            f"The MM system constrains {constrained} pairs of atoms of the model (rigid water, bonds to hydrogen). "
            "createMixedSystem removes these unless removeConstraints=False, and the model's bonds vibrate: take a "
            "timestep of about 0.5 fs.",
            UserWarning,
            stacklevel=6,
        )
