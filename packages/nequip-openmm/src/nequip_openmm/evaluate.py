"""From particles in nm to energy in kJ/mol and forces in kJ/mol/nm: the border between OpenMM's units and ours."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import torch
from torch import Tensor

from nequip_core.blocks import Blocks
from nequip_core.errors import InputError
from nequip_core.export.artifact import LoadedModel
from nequip_core.moving import MovingPotential
from nequip_core.neighbors import DEFAULT, DEVICE
from nequip_core.plugins.manager import find, load_registry
from nequip_core.potential import Prediction
from nequip_core.units import ENERGY, LENGTH
from nequip_openmm.model_file import find as find_model
from nequip_openmm.spec import Spec

ANGSTROM = LENGTH["nm"]
"""Å in a nm."""

KJ_MOL = 1 / ENERGY["kJ/mol"]
"""kJ/mol in an eV."""


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
        name = DEFAULT if model.device.type == "cpu" else DEVICE
        entry = find(load_registry().neighbor_lists, name, "neighbour list")
        self._moving = MovingPotential(model, entry, skin=spec.skin, unit=ANGSTROM)
        self._types = types.cpu().numpy()
        self._parents = torch.tensor(spec.parents, device=model.device) if spec.parents else None
        self._alone = threading.Lock()  # contexts in several threads may share a force

    def __call__(self, positions: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor]:
        """Energy [], kJ/mol, float64, and forces [n, 3], kJ/mol/nm, as the positions; where these are.

        Args:
            positions: [n, 3], nm, of the atoms that the model sees.
            box: [3, 3], nm, rows are vectors; None without one.

        Raises:
            InputError: positions or box are not finite, two atoms overlap.
        """
        x = positions
        if self._parents is not None and box is not None:
            device = self.model.device
            x = unwrap(x.to(device, torch.float64), box.to(device, torch.float64), self._parents)
        with self._alone:
            return self._evaluate(x, box if self.spec.periodic else None, positions)

    def _evaluate(self, x: Tensor, box: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
        watched = None
        if like.device.type == self.model.device.type:
            # The way of a box to the host would be waited for; whether it is the old one is read after the step.
            watched = box
            ahead = self._moving.ahead(x, watched=watched)
            if ahead is not None:
                results = _in_units(ahead.prediction, like)
                if ahead.holds():
                    return results
        cell = torch.zeros(3, 3) if box is None else box.cpu()
        pbc = np.full(3, box is not None)
        return _in_units(self._moving(x, self._types, cell.double().numpy() * ANGSTROM, pbc, watched=watched), like)

    @property
    def potential(self) -> Blocks:
        """The model, in blocks where it must be."""
        return self._moving.potential


def _in_units(prediction: Prediction, like: Tensor) -> tuple[Tensor, Tensor]:
    """Energy and forces of OpenMM."""
    there = [prediction.energy, prediction.forces]
    energy, forces = torch._foreach_mul(there, [KJ_MOL, KJ_MOL * ANGSTROM])  # in one launch
    return energy.to(like.device).squeeze(0), forces.to(like)


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


_EVALUATORS: dict[tuple[str, torch.device], Evaluator] = {}
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
    key = text, near
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
    factor = next((one for one in given if one.numel() == 1), None)  # of no dimension, or of one on CUDA
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
