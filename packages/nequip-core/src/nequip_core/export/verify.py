"""Whether a file's weights still give the predictions that were written beside them.

A hash says that nothing has changed since it was made; any tool can make it again. The predictions for two structures
say that the weights are the ones that were trained, and that this machine computes with them what that one did. A
prediction may hardly depend on one of many matrices; the norm of each is there for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from nequip_core.errors import ArtifactError, CheckError, InputError
from nequip_core.export.artifact import CPU, model_of
from nequip_core.export.package import CheckCase, Json, Members, pack_check, unpack_check, unpack_norms
from nequip_core.graph import from_structure, to
from nequip_core.models.base import EnergyModel, ModelInfo
from nequip_core.neighbors import make_vesin
from nequip_core.plugins.manager import Registry
from nequip_core.potential import Potential, stress
from nequip_core.structure import Structure, TypeMap

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
"""Largest difference by the model's dtype, in units of what a prediction is made of; see `deviations`.

Rounding in float32 makes 5e-7 of it (NequIP of 6 layers, l_max 3; Allegro of 3 layers, l_max 3).
"""

NORM_TOLERANCE = 1e-9
"""Largest relative difference of a weight's norm, which is computed in float64 in either case."""

NOTHING = (
    "holds no check structures, so nothing but its hash can be compared. `nequip package build` writes a package that "
    "has some"
)


class Deviation(NamedTuple):
    """One number against the one in the file.

    Attributes:
        of: where the structure came from, or the weight's name.
        quantity: "energy" (eV), "forces" (eV/Å), "stress" (eV/Å³) or "norm".
        difference: the largest of any component.
        allowed: what it may be.
    """

    of: str
    quantity: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is allowed; a number that is not finite never is."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        unit = {"energy": " eV", "forces": " eV/Å", "stress": " eV/Å³", "norm": ""}[self.quantity]
        return f"{self.quantity} of {self.of}: off by {self.difference:.2e}{unit}, {self.allowed:.2e} allowed"

    def to_json(self) -> Json:
        """As a dictionary; a difference that is no number is null."""
        finite = math.isfinite(self.difference)
        return {**self._asdict(), "difference": self.difference if finite else None, "passed": self.passed}


def verify(path: Path, members: Members, registry: Registry, device: torch.device = CPU) -> list[Deviation]:
    """The predictions and norms in a file against those of its weights, computed again.

    Raises:
        ArtifactError: its members make no model, or its check structures can not be read.
        CheckError: it has none.
    """
    model, _, _ = model_of(path, members, registry, device=device)
    cases = check_cases(path, members)
    if not cases:
        raise CheckError(f"{path} {NOTHING}.")
    found = predict(model, [case.structure for case in cases], path, device)
    predictions = [one for stored, new in zip(cases, found, strict=True) for one in deviations(model, stored, new)]
    return [*predictions, *_norms(members)]


def check_cases(path: Path, members: Members) -> list[CheckCase]:
    """The check structures of a file.

    Raises:
        ArtifactError: they can not be read.
    """
    try:
        return unpack_check(members)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: its check structures are not as this schema says ({type(error).__name__}: {error}). Take another "
            "copy."
        ) from error


def with_check(path: Path, members: Members, registry: Registry, structures: Sequence[Structure] = ()) -> Members:
    """The same members with predictions of their weights, for these structures or, where there are none, made-up ones.

    Computed on the CPU by the reference.
    """
    model, _, _ = model_of(path, members, registry, kernels="reference")
    cases = predict(model, list(structures) or made_up(model.info), path)
    check, tensors = pack_check(cases, members.weights)
    return replace(members, check=check, check_tensors=tensors)


def predict(
    model: EnergyModel, structures: Sequence[Structure], path: Path, device: torch.device = CPU
) -> list[CheckCase]:
    """What the model predicts for each structure, by itself; float64 on the CPU.

    Raises:
        ArtifactError: the structures are not of the model.
    """
    info = model.info
    potential = Potential(model.to(device)).eval().requires_grad_(False)
    type_map, cutoffs, neighbors = (
        TypeMap(info.types, info.elements),
        np.array(info.pair_cutoffs),
        make_vesin(info.cutoff),
    )
    cases = []
    for structure in structures:
        try:
            graph = from_structure(structure, type_map, cutoffs, neighbors)
        except InputError as error:
            raise ArtifactError(f"{path}: its check structures are none for its model. {error}") from error
        out = potential(to(graph, device))
        volume = structure.volume
        tension = (
            None if volume is None else stress(out.virial, torch.tensor([volume], device=device).double())[0].cpu()
        )
        cases.append(CheckCase(structure, out.energy[0].cpu(), out.forces.cpu(), tension))
    return cases


def deviations(model: EnergyModel, stored: CheckCase, new: CheckCase) -> Iterator[Deviation]:
    """The differences, and what rounding may make of them.

    Rounding is relative to what predictions are sums of: for each atom the model's energy scale, which atomic energies
    of thousands of eV do not belong to; forces and stress that cancel in a perfect crystal are measured by it too.
    """
    tolerance, atoms = TOLERANCE[model.info.dtype], len(stored.structure)
    scale = float(model.scale.abs().max())
    of_sum = 1e-13 * float(stored.energy.abs())  # rounding in float64 of the sum of the atomic energies
    smallest = {"energy": scale * atoms, "forces": scale, "stress": scale * atoms / (stored.structure.volume or 1.0)}
    for quantity, least in smallest.items():
        before, after = getattr(stored, quantity), getattr(new, quantity)
        if before is None and after is None:
            continue
        size = least if quantity == "energy" else max(least, _largest(before))
        yield Deviation(
            of=stored.structure.source or "structure",
            quantity=quantity,
            difference=_difference(before, after),
            allowed=tolerance * size + (of_sum if quantity == "energy" else 0.0),
        )


def _norms(members: Members) -> Iterator[Deviation]:
    """Of the weights whose norm the file has."""
    for name, before in sorted(unpack_norms(members).items()):
        after = members.weights[name].double().norm() if name in members.weights else torch.tensor(math.inf)
        difference = _difference(before, after)
        yield Deviation(of=name, quantity="norm", difference=difference, allowed=NORM_TOLERANCE * float(before))


def _largest(x: Tensor | None) -> float:
    return 0.0 if x is None or x.numel() == 0 else float(x.abs().max())


def _difference(before: Tensor | None, after: Tensor | None) -> float:
    """Infinite where one is missing or of another shape."""
    if before is None or after is None or before.shape != after.shape:
        return float("inf")
    return _largest(before - after) if bool((before - after).isfinite().all()) else float("inf")


def made_up(info: ModelInfo) -> list[Structure]:
    """A periodic structure and one without cell, with every type of a model; the same at every call."""
    rng = np.random.default_rng(0)
    spacing = min(2.0, 0.6 * info.cutoff)
    side = next(n for n in range(2, 99) if n**3 >= max(8, len(info.types)))
    sites = np.array(list(np.ndindex(side, side, side)), dtype=np.float64)
    names = [info.types[n % len(info.types)] for n in rng.permutation(len(sites))]
    numbers = np.array([atomic_numbers[info.elements[info.types.index(name)]] for name in names])
    cell = side * spacing * np.array([[1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [-0.1, 0.05, 1.0]])
    made = []
    for periodic in (True, False):
        jitter = rng.uniform(-0.12, 0.12, sites.shape)
        made.append(
            Structure(
                positions=(sites + jitter) / side @ cell,
                numbers=numbers,
                cell=cell * periodic,
                pbc=np.full(3, periodic),
                type_names=tuple(names),
                source="made up, " + ("periodic" if periodic else "without cell"),
            )
        )
    return made
