"""From particles in nm to energy in kJ/mol and forces in kJ/mol/nm: the border between OpenMM's units and ours."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nequip_core.blocks import Blocks
from nequip_core.engines.ase import MovingGraph
from nequip_core.errors import InputError
from nequip_core.export.artifact import LoadedModel
from nequip_core.graph import Graph
from nequip_core.neighbors import DEFAULT, DEVICE, SkinNeighborList
from nequip_core.plugins.manager import find, load_registry
from nequip_core.skin import SkinGraph, serves
from nequip_core.structure import Floats
from nequip_core.units import ENERGY, LENGTH
from nequip_openmm.model_file import find as find_model
from nequip_openmm.spec import Spec

ANGSTROM = LENGTH["nm"]
"""Å in a nm."""

KJ_MOL = 1 / ENERGY["kJ/mol"]
"""kJ/mol in an eV."""

MakeGraph = Callable[[Tensor, Tensor | None], Graph]
"""``(positions [N, 3] Å, cell [3, 3] Å on the host or None) -> Graph`` on the model's device."""


def moving_graph(model: LoadedModel, types: Tensor, skin: float, name: str | None = None) -> MakeGraph:
    """The graph of atoms that move, whose neighbours are listed with a skin: on CUDA without leaving the device.

    Args:
        model: gives cut-offs and device.
        types: [n].
        skin: Å.
        name: of a neighbour list; None: `DEVICE` on CUDA and `DEFAULT` on the CPU.
    """
    name = name or (DEFAULT if model.device.type == "cpu" else DEVICE)
    entry = find(load_registry().neighbor_lists, name, "neighbour list")
    cutoffs = np.array(model.info.pair_cutoffs)
    of_atoms = types.cpu().numpy()

    def pbc_of(cell: Tensor | None) -> tuple[Floats, NDArray[np.bool_]]:
        return np.zeros((3, 3)) if cell is None else cell.numpy(), np.full(3, cell is not None)

    if serves(entry, model.device):
        on_device = SkinGraph(entry, cutoffs, skin, model.device, model.narrow)
        return lambda positions, cell: on_device(positions, of_atoms, *pbc_of(cell))
    listed = MovingGraph(SkinNeighborList(entry.make.load(), model.info.cutoff, skin), cutoffs, model.device)
    return lambda positions, cell: listed(positions.cpu().numpy(), of_atoms, *pbc_of(cell))


class Evaluator:
    """One model and the atoms of one force.

    Args:
        spec: the force.
        types: [n] of the atoms that the model sees.
        model: of the spec.
    """

    def __init__(self, spec: Spec, types: Tensor, model: LoadedModel) -> None:
        self.spec = spec
        self.model = model
        self.potential = Blocks(model.potential, model.info)  # on CUDA, and as memory asks
        self._graph = moving_graph(model, types, spec.skin)
        self._parents = torch.tensor(spec.parents, dtype=torch.int64, device=model.device)
        self._alone = threading.Lock()  # contexts in several threads may share a force

    def __call__(self, positions: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor]:
        """Energy [], kJ/mol, and forces [n, 3], kJ/mol/nm; float64, where the positions are.

        Args:
            positions: [n, 3], nm, of the atoms that the model sees.
            box: [3, 3], nm, rows are vectors; None without one.

        Raises:
            InputError: positions or box are not finite, two atoms overlap.
        """
        here = self.model.device
        x = positions.to(here, torch.float64) * ANGSTROM
        cell = None if box is None else box.to("cpu", torch.float64) * ANGSTROM  # where lattices are planned
        if len(self._parents) and cell is not None:
            x = unwrap(x, cell.to(here), self._parents)
        with self._alone:
            prediction = self.potential(self._graph(x, cell if self.spec.periodic else None))
        energy = prediction.energy.sum() * KJ_MOL
        forces = prediction.forces * (KJ_MOL * ANGSTROM)
        return energy.to(positions.device), forces.to(positions.device)


def unwrap(positions: Tensor, cell: Tensor, parents: Tensor) -> Tensor:
    """Each atom at the periodic image that is nearest to the one that it is bonded to. [n, 3].

    Args:
        positions: [n, 3].
        cell: [3, 3], reduced as OpenMM's: lower triangular.
        parents: [n], see `nequip_openmm.region.parents`.
    """
    step = positions - positions.index_select(0, parents)
    for axis in (2, 1, 0):
        step = step - torch.round(step[:, axis : axis + 1] / cell[axis, axis]) * cell[axis]
    # Sums of steps along the way to atom 0, which doubles its length each time.
    reached = parents
    for _ in range(max(1, len(parents).bit_length())):
        step = step + step.index_select(0, reached)
        reached = reached.index_select(0, reached)
    return positions[:1] + step


_EVALUATORS: dict[tuple[str, str], Evaluator] = {}
_LOCK = threading.Lock()


def evaluator(text: str, types: Tensor, embedded: Tensor | bytes | None, near: torch.device) -> Evaluator:
    """The evaluator of a force, made when it is first asked for.

    Args:
        text: of the spec.
        types: [n].
        embedded: bytes of the model.
        near: where OpenMM computes; of several CUDA devices this one is taken.

    Raises:
        InputError: the model is gone, or can not run here.
    """
    key = text, str(near) if near.type == "cuda" else "cpu"
    found = _EVALUATORS.get(key)
    if found is None:
        with _LOCK:
            spec = Spec.from_json(text)
            device = str(near) if spec.device == near.type == "cuda" else spec.device
            model = find_model(spec.path, spec.sha256, device, embedded)
            found = _EVALUATORS[key] = Evaluator(spec, types, model)
    return found


def key_of(types: Tensor, indices: Tensor) -> str:
    """Eight hexadecimal digits that stand for the atoms of a force."""
    return hashlib.sha256(types.numpy().tobytes() + indices.numpy().tobytes()).hexdigest()[:8]


def box_and_factor(spec: Spec, arguments: tuple[Tensor | None, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Which of the tensors after the positions is the box, and which the global parameter.

    Raises:
        InputError: one that the force needs was not given; says which line is missing.
    """
    given = [one for one in arguments if one is not None]
    box = next((one for one in given if one.dim() == 2), None)
    factor = next((one for one in given if one.dim() == 0), None)
    if box is None and spec.box:
        raise InputError(
            "This force needs the periodic box. Add the line force.setUsesPeriodicBoundaryConditions(True), and see "
            "that the system has a box; or write the force with periodic=False."
        )
    if factor is None and spec.parameter is not None:
        raise InputError(
            f"This force is multiplied with the global parameter {spec.parameter!r}. Add the line "
            f"force.addGlobalParameter({spec.parameter!r}, 1.0)."
        )
    return box, factor if spec.parameter is not None else None


def check_number(spec: Spec, positions: Tensor) -> None:
    """Raise unless the system is as large as the force's.

    Raises:
        InputError: it is not.
    """
    if len(positions) != spec.particles:
        raise InputError(
            f"This force was written for {spec.particles} particles; the system has {len(positions)}. Write it for "
            "this system."
        )
