"""Errors of a model on a data set: MAE and RMSE of each quantity, and the loss, from sums kept on the device.

Sums are exact whatever the batches and ranks: nothing is averaged twice, and the device is read once per data set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nequip_core.data.batch import Batch
from nequip_core.potential import Prediction
from nequip_core.training.loss import DIFFERENCES, Loss
from nequip_core.training.nonfinite import Found
from nequip_core.training.ranks import ONE, Ranks

NAMES = tuple(f"{quantity}_{kind}" for quantity in DIFFERENCES for kind in ("mae", "rmse"))
"""energy_mae, energy_rmse, energy_per_atom_mae, ..."""


class Metrics:
    """Sums of absolute and squared differences and their number, for each quantity; and of the loss's terms.

    Args:
        loss: whose value is reported too.
        ranks: that share the data set.
    """

    def __init__(self, loss: Loss, ranks: Ranks = ONE) -> None:
        self.loss = loss
        self.ranks = ranks
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._errors: list[Tensor] = []
        self._terms: list[Tensor] = []
        self._ids: list[Tensor] = []

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Add a batch."""
        rows = []
        for compare in DIFFERENCES.values():
            difference = compare(prediction, batch)
            value = difference.value.detach()
            rows.append(torch.stack((value.abs().sum(), value.square().sum(), difference.numbers())))
        self._errors.append(torch.stack(rows))
        self._terms.append(self.loss.sums(prediction, batch).detach())
        self._ids.append(batch.ids)

    def not_finite(self) -> Found | None:
        """The loss of the first of this rank's batches whose loss is not finite, and its structures."""
        for terms, ids in zip(self._terms, self._ids, strict=True):
            loss = self.loss.of_sums(terms.cpu()).item()
            if not math.isfinite(loss):
                return Found(loss, ids.tolist())
        return None

    def compute(self, device: torch.device) -> dict[str, float | None]:
        """``loss`` and `NAMES`, eV and Å, over all ranks; None where nothing is labelled.

        Args:
            device: where this rank's batches were, in case there were none.
        """
        errors = self._total(self._errors, (len(DIFFERENCES), 3), device)
        terms = self._total(self._terms, (len(self.loss.terms), 2), device)
        loss = self.loss.of_sums(terms.cpu())
        result: dict[str, float | None] = {"loss": loss.item()}
        for quantity, (absolute, squared, number) in zip(DIFFERENCES, errors.tolist(), strict=True):
            result[f"{quantity}_mae"] = absolute / number if number else None
            result[f"{quantity}_rmse"] = math.sqrt(squared / number) if number else None
        return result

    def _total(self, parts: list[Tensor], shape: tuple[int, int], device: torch.device) -> Tensor:
        total = torch.stack(parts).sum(0) if parts else torch.zeros(shape, dtype=torch.float64, device=device)
        self.ranks.sum_(total, "the sums of validation")
        return total
