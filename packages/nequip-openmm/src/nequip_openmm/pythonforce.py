"""A model as OpenMM's PythonForce, which every OpenMM has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import unit

from nequip_openmm.errors import as_openmm
from nequip_openmm.evaluate import box_and_factor, check_number, evaluator
from nequip_openmm.prepare import Prepared, prepare
from nequip_openmm.region import Atoms, Types
from nequip_openmm.spec import Spec

CPU = torch.device("cpu")


class Computation:
    """What a PythonForce calls; pickled with the force, the model's bytes included.

    Args:
        text: of the spec, whose particles are those that the model sees.
        types: [n].
        blob: the model's bytes, or None: read from its path.
    """

    def __init__(self, text: str, types: NDArray[np.int64], blob: bytes | None) -> None:
        self.text = text
        self.types = types
        self.blob = blob
        self.spec = Spec.from_json(text)

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        """Energy, kJ/mol, and forces [n, 3], kJ/mol/nm."""
        of = evaluator(self.text, torch.from_numpy(self.types), self.blob, CPU)
        positions = torch.from_numpy(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        check_number(self.spec, positions)
        box = _box(state) if self.spec.box else None
        name = self.spec.parameter
        factor = None if name is None else torch.tensor(state.getParameters()[name], dtype=torch.float64)
        box, factor = box_and_factor(self.spec, (box, factor))
        energy, forces = of(positions, box)
        if factor is not None:
            energy, forces = factor * energy, factor * forces
        return float(energy), forces.numpy()


def _box(state: Any) -> torch.Tensor | None:
    try:
        vectors = state.getPeriodicBoxVectors(asNumpy=True)
    except openmm.OpenMMException:  # the state of a force that was told of no box
        return None
    return torch.from_numpy(vectors.value_in_unit(unit.nanometer))


@as_openmm()
def python_force(
    model: str | Path,
    atoms_of: Atoms,
    *,
    atoms: Iterable[int] | None = None,
    periodic: bool | None = None,
    lambda_name: str | None = None,
    types: Types = None,
    device: str = "auto",
    skin: float = 1.0,
    embed: bool = True,
) -> openmm.PythonForce:
    """A force that computes the model, for ``system.addForce``; its flags are set.

    Args:
        model: a compiled file (.nequip.pt2); a package, checkpoint or run's folder is compiled first.
        atoms_of: the topology, or the element of every particle.
        atoms: the particles that the model sees; None: all that have an element.
        periodic: whether the model sees periodic images; None: as the topology. False in a system with a box: the
            atoms are put together by the topology's bonds, where the box has cut them.
        lambda_name: of a global parameter that energy and forces are multiplied with.
        types: element -> type, where the model has several types of an element; or each atom's.
        device: auto, cpu, cuda, cuda:N.
        skin: of the neighbour list, Å; speed, not results.
        embed: whether the force, when it is copied or serialized, holds the model.

    Raises:
        OpenMMError: one of these can not be used.
    """
    ready = prepare(
        model,
        atoms_of,
        atoms=atoms,
        periodic=periodic,
        lambda_name=lambda_name,
        types=types,
        device=device,
        skin=skin,
        embed=embed,
    )
    return of_prepared(ready)


def of_prepared(ready: Prepared) -> openmm.PythonForce:
    """The PythonForce of what `nequip_openmm.prepare.prepare` gave."""
    text = ready.spec_of_region.to_json()
    computation = Computation(text, ready.region.types, ready.content)
    name = ready.spec.parameter
    force = openmm.PythonForce(computation, {} if name is None else {name: 1.0}, list(ready.region.indices or ()))
    force.setUsesPeriodicBoundaryConditions(ready.spec.box)
    force.setName("NequIP")
    return force
