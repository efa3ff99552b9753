"""Our models in torch-sim: many structures at once, integrated and relaxed on the device.

from nequip_core.engines.torchsim import NequIPModel
model = NequIPModel.from_file("MODEL", device="auto")
final = torch_sim.optimize(system=[atoms, ...], model=model, optimizer=torch_sim.fire, autobatcher=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from nequip_core.blocks import BlockEdges, Blocks
from nequip_core.engines.ase import type_table, types_of
from nequip_core.errors import InputError
from nequip_core.export.artifact import LoadedModel, load_model
from nequip_core.moving import MovingPotential
from nequip_core.neighbors import DEVICE
from nequip_core.plugins.manager import find, load_registry
from nequip_core.potential import stress
from nequip_core.structure import Ints

try:
    import torch_sim
    from torch_sim.models.interface import ModelInterface
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}. Install torch-sim: pip install 'nequip-core[torch-sim]'.") from error


class NequIPModel(ModelInterface):  # type: ignore[misc]  # torch-sim 0.3 has no types
    """Energies, forces and stress of a batch of systems, in eV and Å, float64.

    Neighbours of all systems are listed together on the device, with a skin, and anew once an atom has moved half of
    it, or when systems come, go or change their cells.

    Args:
        loaded: from `nequip_core.export.artifact.load_model`.
        types: element -> type name, for elements of which the model has several types.
        skin: Å; beyond the cut-off. No effect on results.
        block_edges: see `nequip_core.blocks.Blocks`. No effect on results.
        compute_stress: whether "stress" is among the outputs. It is NaN where a system is not periodic in all three
            directions, and so has none.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        types: Mapping[str, str] | None = None,
        skin: float = 1.0,
        block_edges: BlockEdges = "auto",
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        self._device = loaded.device
        self._dtype = torch.float64
        self._compute_forces = True
        self._compute_stress = compute_stress
        self.loaded = loaded
        entry = find(load_registry().neighbor_lists, DEVICE, "neighbour list")
        self._moving = MovingPotential(loaded, entry, skin=skin, block_edges=block_edges)
        self._type_of_number = type_table(loaded.type_map, dict(types or {}))
        self._systems: tuple[Tensor, Tensor, Ints, Ints] | None = None

    @classmethod
    def from_file(
        cls,
        model: str | Path,
        device: str | torch.device = "auto",
        *,
        types: Mapping[str, str] | None = None,
        skin: float = 1.0,
        kernels: str | Mapping[str, str] = "auto",
        checkpoint: str = "best",
        weights: Literal["ema", "raw"] = "ema",
        block_edges: BlockEdges = "auto",
        compute_stress: bool = True,
    ) -> Self:
        """The model of a run's folder, a checkpoint, a package or a compiled file; arguments as in ASE.

        Raises:
            ArtifactError: the file can not be read.
            InputError: the device is not there; ``types`` names an unknown element or type.
        """
        loaded = load_model(model, checkpoint=checkpoint, weights=weights, device=device, kernels=kernels)
        return cls(loaded, types=types, skin=skin, block_edges=block_edges, compute_stress=compute_stress)

    def forward(self, state: torch_sim.SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """``energy`` [B] eV, ``forces`` [N, 3] eV/Å, ``stress`` [B, 3, 3] eV/Å³, tension positive.

        Raises:
            InputError: an element that the model does not know, positions or cells that are not finite.
        """
        state = state if isinstance(state, torch_sim.SimState) else torch_sim.SimState(**state)
        types, atoms = self._types_and_numbers(state)
        cells = state.row_vector_cell.detach().to("cpu", torch.float64)
        pbc = np.broadcast_to(np.asarray(torch.as_tensor(state.pbc).cpu(), dtype=bool), (len(atoms), 3))
        prediction = self._moving.batch(state.positions.detach(), types, cells.numpy(), pbc, atoms)
        outputs = {"energy": prediction.energy.detach(), "forces": prediction.forces.detach()}
        if self.compute_stress:
            volume = torch.where(torch.from_numpy(pbc.all(axis=1)), torch.linalg.det(cells).abs(), torch.nan)
            outputs["stress"] = stress(prediction.virial.detach(), volume.to(self.device))
        return outputs

    @property
    def potential(self) -> Blocks:
        """The model, in blocks where it must be."""
        return self._moving.potential

    def _types_and_numbers(self, state: torch_sim.SimState) -> tuple[Ints, Ints]:
        """[N] types and [B] numbers of atoms, on the host; they are fetched anew when systems come or go."""
        numbers, system = state.atomic_numbers, state.system_idx
        if self._systems is not None:
            numbers_then, system_then, types, atoms = self._systems
            if torch.equal(numbers, numbers_then) and torch.equal(system, system_then):
                return types, atoms
        types = types_of(numbers.cpu().numpy(), self._type_of_number, self.loaded.type_map)
        atoms = state.n_atoms_per_system.cpu().numpy().astype(np.int64)
        if atoms.min(initial=1) < 1:
            raise InputError(f"A system of the batch holds no atoms. Received {atoms.tolist()} atoms.")
        self._systems = numbers.clone(), system.clone(), types, atoms
        return types, atoms
