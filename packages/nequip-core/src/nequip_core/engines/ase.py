"""Our models in ASE: a calculator for dynamics, relaxation, NEB, and whatever else takes one.

from nequip_core.engines.ase import NequIPCalculator
atoms.calc = NequIPCalculator.from_file("MODEL", device="auto")
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import ase
import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import atomic_numbers, chemical_symbols

from nequip_core.blocks import BlockEdges, Blocks
from nequip_core.errors import InputError
from nequip_core.export.artifact import LoadedModel, load_model
from nequip_core.moving import MovingPotential
from nequip_core.neighbors import DEFAULT, DEVICE
from nequip_core.plugins.manager import find, load_registry
from nequip_core.plugins.records import NeighborListEntry
from nequip_core.potential import Prediction
from nequip_core.structure import Floats, Ints, TypeMap

PERIODIC_ONLY = {"stress", "stresses"}
UNKNOWN, AMBIGUOUS = -1, -2
"""In place of a type's index: the model has no type of this element, or several."""

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
"""Rows and columns of a 3x3 tensor in Voigt's order xx yy zz yz xz xy."""


class NequIPCalculator(Calculator):
    """Energies, forces and stress of a model, in eV and Å.

    Neighbours are listed with a skin and listed anew once an atom has moved half of it, or when cell, periodicity,
    number, order or elements of the atoms change. On a CUDA device they are listed and kept there. One calculator may
    serve several `Atoms` in turn. Copies share the weights. Neither threads nor MPI ranks are touched.

    Args:
        loaded: from `nequip_core.export.artifact.load_model`.
        neighbor_list: the registry's record of a neighbour list; unless given, of `nequip_core.neighbors.DEVICE` on
            CUDA, and of `nequip_core.neighbors.DEFAULT`, which is quicker there, on the CPU.
        types: element -> type name, for elements of which the model has several types.
        skin: Å; beyond the cut-off. No effect on results.
        block_edges: strictly local models are evaluated in blocks of atoms with at most so many edges; "auto": on CUDA,
            as memory asks; None: all atoms at once. No effect on results; see `nequip_core.blocks.Blocks`.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]  # noqa: RUF012

    def __init__(
        self,
        loaded: LoadedModel,
        neighbor_list: NeighborListEntry | None = None,
        *,
        types: Mapping[str, str] | None = None,
        skin: float = 1.0,
        block_edges: BlockEdges = "auto",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.loaded = loaded
        name = DEFAULT if loaded.device.type == "cpu" else DEVICE
        self.neighbor_list = neighbor_list or find(load_registry().neighbor_lists, name, "neighbour list")
        self.types = dict(types or {})
        self.skin = skin
        self.block_edges = block_edges
        self._type_of_number = type_table(loaded.type_map, self.types)
        self._moving = self._new()

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
    ) -> Self:
        """The calculator of a run's folder, a checkpoint or a package.

        Args:
            model: DIR means DIR/checkpoints/best.ckpt.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
            types: element -> type name, for elements of which the model has several types.
            skin: Å beyond the cut-off at which neighbours are listed, so that a list serves several steps.
            kernels: "auto", "reference", a kernel's name, or {operator: name}.
            checkpoint: of a run's folder: "best" or "last".
            weights: "ema": the averaged ones where there are any; "raw": the trained ones.
            block_edges: edges in a block of a strictly local model; "auto": on CUDA, as memory asks; None: one block.

        Raises:
            ArtifactError: the file can not be read.
            InputError: the device is not there; ``types`` names an unknown element or type.
        """
        loaded = load_model(model, checkpoint=checkpoint, weights=weights, device=device, kernels=kernels)
        return cls(loaded, types=types, skin=skin, block_edges=block_edges)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute everything at once; called by ASE.

        Raises:
            PropertyNotImplementedError: stress without three periodic directions.
            InputError: an element that the model does not know, positions that are not finite.
        """
        super().calculate(atoms, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
        atoms = self.atoms  # a copy that ASE keeps, to see changes by
        assert atoms is not None
        periodic = bool(atoms.pbc.all())
        if not periodic and PERIODIC_ONLY.intersection(properties):
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic in all three directions; received pbc {atoms.pbc.tolist()}"
            )
        types = types_of(atoms.numbers, self._type_of_number, self.loaded.type_map)
        prediction = self._moving(atoms.positions, types, atoms.cell.array, atoms.pbc, atomic_virial=periodic)
        energy, energies, forces, virial, *virials = _numpy(prediction)
        self.results = {
            "energy": float(energy[0]),
            "free_energy": float(energy[0]),
            "energies": energies,
            "forces": forces,
        }
        if periodic:
            volume = atoms.get_volume()
            self.results["stress"] = voigt(virial[0]) / -volume
            self.results["stresses"] = voigt(virials[0]) / -volume

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A calculator of its own with the same weights."""
        options: dict[str, Any] = {"types": self.types, "skin": self.skin, "block_edges": self.block_edges}
        other = type(self)(self.loaded, self.neighbor_list, **options)
        memo[id(self)] = other
        other.atoms = copy.deepcopy(self.atoms, memo)
        other.results = copy.deepcopy(self.results, memo)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """All but the neighbours, which are listed again in the process that unpickles."""
        return {name: value for name, value in vars(self).items() if name != "_moving"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._moving = self._new()

    def _new(self) -> MovingPotential:
        return MovingPotential(self.loaded, self.neighbor_list, skin=self.skin, block_edges=self.block_edges)

    @property
    def potential(self) -> Blocks:
        """The model, in blocks where it must be."""
        return self._moving.potential


def _numpy(prediction: Prediction) -> list[Floats]:
    """What there is of a prediction, which leaves the device in one piece."""
    there = [tensor.detach() for tensor in prediction if tensor is not None]
    whole = torch.cat([tensor.flatten() for tensor in there]).cpu()
    parts = whole.split([tensor.numel() for tensor in there])
    return [part.view(tensor.shape).numpy() for part, tensor in zip(parts, there, strict=True)]


def voigt(tensor: Floats) -> Floats:
    """[..., 3, 3] to the symmetric part in Voigt's order, [..., 6]."""
    rows, columns = VOIGT
    part: Floats = 0.5 * (tensor[..., rows, columns] + tensor[..., columns, rows])
    return part


def type_table(type_map: TypeMap, types: Mapping[str, str]) -> Ints:
    """[119] index of the type of each atomic number; `UNKNOWN` or `AMBIGUOUS` where there is none.

    Raises:
        InputError: ``types`` names an unknown element or type, or a type of another element.
    """
    table = np.full(len(chemical_symbols), UNKNOWN, dtype=np.int64)
    for index, element in enumerate(type_map.elements):
        number = atomic_numbers[element]
        table[number] = index if table[number] == UNKNOWN else AMBIGUOUS
    known = dict(zip(type_map.names, type_map.elements, strict=True))
    for element, name in types.items():
        if known.get(name) != element or element not in atomic_numbers:
            raise InputError(
                f"types: {element!r} can not be {name!r}. The model's types and their elements are "
                f"{', '.join(f'{n} ({e})' for n, e in known.items())}."
            )
        table[atomic_numbers[element]] = type_map.names.index(name)
    return table


def types_of(numbers: Ints, table: Ints, known: TypeMap) -> Ints:
    """[N] type indices of atomic numbers [N] by a `type_table`.

    Raises:
        InputError: an element that the model does not know, or of which it has several types.
    """
    types: Ints = table[numbers]
    if types.min(initial=0) >= 0:
        return types
    element = chemical_symbols[numbers[int(types.argmin())]]
    several = [name for name, of in zip(known.names, known.elements, strict=True) if of == element]
    if several:
        raise InputError(
            f"The model has several types of {element}: {', '.join(several)}. Say which the atoms are: "
            f"types={{{element!r}: {several[0]!r}}}."
        )
    raise InputError(
        f"There is an atom of {element}, which the model does not know. Its types are {', '.join(known.names)}. "
        f"Use a model that was trained on {element}."
    )


def check() -> tuple[bool, str]:
    """Whether the engine can run here, and a sentence about it."""
    return True, f"ASE {ase.__version__} is installed; NequIPCalculator runs in it"
