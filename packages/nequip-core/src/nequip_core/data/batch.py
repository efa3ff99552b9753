"""What a training or evaluation step receives: a graph, its labels with masks, and the denominators of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nequip_core.graph import Graph, to


class Labels(NamedTuple):
    """Reference values, dense and float64; where a mask is False the value is zero and means nothing.

    Attributes:
        energy: eV.
        has_energy: which structures are labelled.
        forces: eV/Å.
        has_forces: which atoms are labelled.
        stress: eV/Å³, tension positive.
        has_stress: which structures are labelled and periodic in all three directions.
        weight: factor of each structure in the loss.
    """

    energy: Float[Tensor, "structures"]
    has_energy: Bool[Tensor, "structures"]
    forces: Float[Tensor, "atoms 3"]
    has_forces: Bool[Tensor, "atoms"]
    stress: Float[Tensor, "structures 3 3"]
    has_stress: Bool[Tensor, "structures"]
    weight: Float[Tensor, "structures"]


class Denominators(NamedTuple):
    """How many labelled numbers the whole optimizer step has, over all devices and micro-batches; float64, 0-d.

    Attributes:
        energy: structures with an energy.
        forces: components of forces.
        stress: components of stress.
    """

    energy: Float[Tensor, ""]
    forces: Float[Tensor, ""]
    stress: Float[Tensor, ""]


class Batch(NamedTuple):
    """Structures of one step.

    Attributes:
        graph: atoms and edges.
        cell: Å.
        volume: Å³; NaN unless periodic in all three directions.
        labels: reference values.
        ids: number of each structure in its data set.
        denominators: of the loss.
    """

    graph: Graph
    cell: Float[Tensor, "structures 3 3"]
    volume: Float[Tensor, "structures"]
    labels: Labels
    ids: Int[Tensor, "structures"]
    denominators: Denominators

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        rest = [tensor.to(device, non_blocking=True) for tensor in self.tensors()[len(self.graph) :]]
        return self.of_tensors([*to(self.graph, device), *rest])

    def tensors(self) -> list[Tensor]:
        """One after the other."""
        return [*self.graph, self.cell, self.volume, *self.labels, self.ids, *self.denominators]

    @classmethod
    def of_tensors(cls, tensors: Sequence[Tensor]) -> Self:
        """The opposite of `tensors`."""
        given = iter(tensors)
        return cls(
            graph=Graph(*islice(given, len(Graph._fields))),
            cell=next(given),
            volume=next(given),
            labels=Labels(*islice(given, len(Labels._fields))),
            ids=next(given),
            denominators=Denominators(*given),
        )
