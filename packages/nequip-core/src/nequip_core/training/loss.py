"""What training makes small: the sum over terms of weight * mean of function(prediction - label).

Each mean is a sum over the labelled numbers of a batch, divided by their number in the whole optimizer step, which
comes with the batch. So the loss is the same however a step is cut into micro-batches and devices, and no rank has to
ask the others before its backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nequip_core.data.batch import Batch
from nequip_core.potential import Prediction, stress

Function = Callable[[Tensor], Tensor]
"""Of a difference, element by element; zero at zero."""


def mse(delta: float) -> Function:
    """The square; ``delta`` is not used."""
    return torch.square


def mae(delta: float) -> Function:
    """The absolute value; ``delta`` is not used."""
    return torch.abs


def huber(delta: float) -> Function:
    """Half the square up to ``delta``, linear beyond: delta * (|d| - delta / 2)."""

    def function(difference: Tensor) -> Tensor:
        size = difference.abs()
        return torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))

    return function


class Difference(NamedTuple):
    """Prediction - label, zero where there is no label.

    Attributes:
        value: "n" structures or atoms; further axes are components.
        mask: which of the n are labelled.
        weight: factor of each one's structure in the loss.
    """

    value: Float[Tensor, "n *components"]
    mask: Bool[Tensor, "n"]
    weight: Float[Tensor, "n"]

    def summed(self, function: Function) -> Float[Tensor, ""]:
        """The weighted sum of a function over all labelled numbers."""
        return (_like(self.weight * self.mask, self.value) * function(self.value)).sum()

    def numbers(self) -> Float[Tensor, ""]:
        """How many numbers are labelled."""
        return self.mask.sum().double() * math.prod(self.value.shape[1:])


def energy(prediction: Prediction, batch: Batch) -> Difference:
    """Of structures, eV."""
    labels = batch.labels
    return _difference(prediction.energy, labels.energy, labels.has_energy, labels.weight)


def energy_per_atom(prediction: Prediction, batch: Batch) -> Difference:
    """Of structures, eV/atom."""
    whole = energy(prediction, batch)
    return whole._replace(value=whole.value / batch.graph.structure_ptr.diff())


def forces(prediction: Prediction, batch: Batch) -> Difference:
    """Of atoms, eV/Å."""
    labels = batch.labels
    return _difference(prediction.forces, labels.forces, labels.has_forces, labels.weight[batch.graph.structure])


def stresses(prediction: Prediction, batch: Batch) -> Difference:
    """Of structures that are periodic in all three directions, 9 components, eV/Å³."""
    labels = batch.labels
    # The volume of others is NaN, which would survive in the gradient behind the mask.
    volume = torch.where(labels.has_stress, batch.volume, 1.0)
    return _difference(stress(prediction.virial, volume), labels.stress, labels.has_stress, labels.weight)


DIFFERENCES: Mapping[str, Callable[[Prediction, Batch], Difference]] = {
    "energy": energy,
    "energy_per_atom": energy_per_atom,
    "forces": forces,
    "stress": stresses,
}
"""The quantities that losses and metrics compare."""


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    Attributes:
        quantity: one of `DIFFERENCES`.
        weight: factor of the mean.
        function: of the difference.
    """

    quantity: str
    weight: float
    function: Function

    @property
    def label(self) -> str:
        """The label that the quantity needs, which is the denominator's name too."""
        return self.quantity.removesuffix("_per_atom")


@dataclass(frozen=True)
class Loss:
    """The sum of the terms. Those of weight 0 are left out."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(term for term in self.terms if term.weight != 0))

    def __call__(self, prediction: Prediction, batch: Batch) -> Float[Tensor, ""]:
        """This batch's share of the loss of its optimizer step, float64."""
        total = prediction.energy.new_zeros(())
        for term in self.terms:
            number = getattr(batch.denominators, term.label).clamp(min=1.0)
            total = total + term.weight * DIFFERENCES[term.quantity](prediction, batch).summed(term.function) / number
        return total

    def sums(self, prediction: Prediction, batch: Batch) -> Float[Tensor, "terms 2"]:
        """Numerator and labelled numbers of each term; added up over batches they give the loss of a data set."""
        differences = [DIFFERENCES[term.quantity](prediction, batch) for term in self.terms]
        rows = [
            torch.stack((d.summed(term.function), d.numbers())) for term, d in zip(self.terms, differences, strict=True)
        ]
        return torch.stack(rows)

    def of_sums(self, sums: Float[Tensor, "terms 2"]) -> Float[Tensor, ""]:
        """The loss of what `sums` added up to."""
        weights = torch.tensor([term.weight for term in self.terms], dtype=sums.dtype, device=sums.device)
        return (weights * sums[:, 0] / sums[:, 1].clamp(min=1.0)).sum()


def _difference(prediction: Tensor, label: Tensor, mask: Tensor, weight: Tensor) -> Difference:
    # Before the subtraction: whatever stands where there is no label must not reach the arithmetic.
    return Difference(
        torch.where(_like(mask, label), prediction - torch.where(_like(mask, label), label, 0.0), 0.0), mask, weight
    )


def _like(of_items: Tensor, values: Tensor) -> Tensor:
    """[n] as [n, 1, ...], to go with [n, components ...]."""
    return of_items.reshape(of_items.shape + (1,) * (values.dim() - 1))
