"""Equivariant gated nonlinearity (arXiv:2101.03164, eq. 9)."""

from __future__ import annotations

import torch
from torch import nn

from nequip_core.o3 import SCALAR, Blocks, Irreps
from nequip_core.ops.silu import silu

SILU_GAIN = 1.6791767923989418
"""1 / sqrt(E[silu(z)^2]), z ~ N(0, 1), as e3nn estimates it, so that published weights keep their meaning."""

TANH_GAIN = 1.5937334472592695
"""The same for tanh."""


class Gate(nn.Module):
    """silu on even scalars, tanh on odd ones; other irreps are multiplied by the silu of one even scalar per channel.

    Args:
        irreps: the layout of the result. The input has, behind its even scalars, one gate for each gated channel.
    """

    def __init__(self, irreps: Irreps) -> None:
        super().__init__()
        self.irreps_out = irreps
        gates = [channels for irrep, channels in irreps if irrep.l > 0]
        self.sizes = [irreps.channels[SCALAR], *gates]
        self.irreps_in = Irreps((irrep, channels + sum(gates) * (irrep == SCALAR)) for irrep, channels in irreps)

    def forward(self, x: Blocks) -> Blocks:
        """Blocks [rows, components, channels] of ``irreps_in`` to those of ``irreps_out``."""
        scalars, *gates = (SILU_GAIN * silu(x[SCALAR])).split_with_sizes(self.sizes, dim=-1)
        out = {SCALAR: scalars}
        for irrep, _ in self.irreps_out:
            if irrep.l > 0:
                out[irrep] = x[irrep] * gates.pop(0)
            elif irrep != SCALAR:
                out[irrep] = TANH_GAIN * torch.tanh(x[irrep])
        return out
