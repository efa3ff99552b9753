"""Weights of edges as functions of the distance alone, from a table: cubic between its knots.

A radial network sees nothing but the distance, scaled by the cut-off. So where it is not trained, its values and slopes
at some knots say all. With 1024 intervals a cubic function between two of them (Hermite's) is right to 1e-9 of the
largest weight, and to 1e-7 of the largest slope (128 hidden numbers with random weights, 8 Bessel functions, from 0.14
of the cut-off on). float32 rounds to 6e-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nequip_core.errors import ConfigError
from nequip_core.nn.radial import BesselBasis
from nequip_core.ops.contracts import ScalarMLPSpec
from nequip_core.ops.kept import Kept
from nequip_core.ops.mlp import ReferenceMLP
from nequip_core.ops.reference import is_traced

INTERVALS = 1024
LARGEST_DEVIATION = 2e-6
"""Of a slope from the network's, as a part of the largest slope."""
STEP = 1e-4
"""Of the differences that give the slopes, of the cut-off: in float64 the errors of the step and of rounding together
are 3e-11 of the largest slope (128 hidden numbers, random weights)."""


def places(x: Float[Tensor, "edges 1"], dtype: torch.dtype) -> tuple[Int[Tensor, "edges"], Float[Tensor, "edges"]]:
    """Interval of each scaled distance, and where it is in it. From the cut-off on it is the row of zeros."""
    at = x.squeeze(1) * INTERVALS
    place = at.detach().floor().clamp(max=INTERVALS)
    return place.to(torch.int32), (at - place).to(dtype)


def too_steep(deviation: float) -> str:
    """Why a table can not stand for a network."""
    return (
        f"a radial network of this model is too steep for a table of {INTERVALS} intervals: slopes would be off by up "
        f"to {deviation:.1e} of the largest one (allowed: {LARGEST_DEVIATION:.0e})"
    )


class RadialTable(nn.Module):
    """The table of one network, see nequip.tabulated_convolution/1 in `nequip_core.ops.contracts`.

    Args:
        spec: of the network.
    """

    def __init__(self, spec: ScalarMLPSpec) -> None:
        super().__init__()
        self.network = ReferenceMLP(spec)
        knots = torch.arange(INTERVALS + 1, dtype=torch.float64) / INTERVALS
        beside = [0.0, -2 * STEP, -STEP, STEP, 2 * STEP, 0.5 / INTERVALS]
        points = knots + torch.tensor(beside, dtype=torch.float64).unsqueeze(1)
        points[0, 0] = 1e-9  # a limit: the basis divides by it
        self.register_buffer("points", points.reshape(-1, 1), persistent=False)
        self.points: Tensor
        self.kept = Kept()

    def forward(self, bessels: BesselBasis, weights: Sequence[Tensor]) -> Float[Tensor, "rows 4 num_weights"]:
        """Computed in float64, in the dtype of the weights.

        Args:
            bessels: what the network sees of the distance.
            weights: of the network.

        Raises:
            ConfigError: the network is too steep for so many intervals.
        """
        table: Tensor = self.kept(partial(self._make, bessels), *weights, bessels.frequencies)
        return table

    def deviation(self, bessels: BesselBasis, weights: Sequence[Tensor]) -> float:
        """Of the table's slopes from the network's: a bound, as a part of the largest slope.

        Hermite's cubic deviates most in the middle of an interval, with a fourth derivative M by M / 384 (intervals of
        length 1), and its slope by at most M / (72 sqrt(3)).
        """
        rows, middle, slope = self._rows(bessels, *(weight.detach() for weight in weights))
        return _deviation(rows, middle, slope)

    def _make(self, bessels: BesselBasis, *sources: Tensor) -> Tensor:
        *weights, _ = sources
        rows, middle, slope = self._rows(bessels, *weights)
        # Where a model is compiled, it is evaluated too.
        if not is_traced() and not (deviation := _deviation(rows, middle, slope)) <= LARGEST_DEVIATION:
            raise ConfigError(
                f"kernels: {too_steep(deviation)}. Leave out the kernel of nequip.tabulated_convolution, or take auto."
            )
        return nn.functional.pad(rows, (0, 0, 0, 0, 0, 1)).to(weights[0].dtype)

    def _rows(self, bessels: BesselBasis, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of each interval [intervals, 4, num_weights]; values in their middles; slopes at the knots."""
        (values,) = self.network([bessels(self.points)], [weight.double() for weight in weights])
        at, before_2, before, after, after_2, middle = values.unflatten(0, (6, INTERVALS + 1)).unbind(0)
        slope = (before_2 - after_2 + 8 * (after - before)) / (12 * STEP * INTERVALS)
        left, right, of_left, of_right = at[:-1], at[1:], slope[:-1], slope[1:]
        rise = right - left
        rows = torch.stack([left, of_left, 3 * rise - 2 * of_left - of_right, of_left + of_right - 2 * rise], dim=1)
        return rows, middle[:-1], slope


def _deviation(rows: Tensor, middle: Tensor, slope: Tensor) -> float:
    """See `RadialTable.deviation`."""
    first, second, third, fourth = rows.detach().unbind(1)
    off = (first + second / 2 + third / 4 + fourth / 8 - middle.detach()).abs().max()
    return float(384 / (72 * 3**0.5) * off / slope.detach().abs().max().clamp(min=1e-300))
