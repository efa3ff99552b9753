"""A kernel, a neighbour list, a loss function and an engine's verdict, each by the shortest way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nequip_core.neighbors import NeighborList, make_matscipy
from nequip_core.ops import reference
from nequip_core.ops.contracts import Convolution, ConvolutionSpec


def make_convolution(spec: ConvolutionSpec, dtype: torch.dtype, device: torch.device) -> Convolution:
    """The reference itself."""
    return reference.make_convolution(spec, dtype, device)


def refuses(spec: ConvolutionSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Nothing is refused."""
    return None


def make_neighbor_list(cutoff: float, skin: float = 0.0) -> NeighborList:
    """matscipy's list."""
    return make_matscipy(cutoff, skin)


def log_cosh(delta: float) -> Callable[[Tensor], Tensor]:
    """delta^2 log cosh(d / delta) of a difference d: a parabola that becomes linear beyond delta."""

    def function(difference: Tensor) -> Tensor:
        x = (difference / delta).abs()
        return delta**2 * (x + torch.nn.functional.softplus(-2 * x) - math.log(2))

    return function


def check() -> tuple[bool, str]:
    """The toy engine runs everywhere."""
    return True, "it needs nothing"
