"""How a step is spread over devices. Several devices come with `deferred_ddp`."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy


def single(device: torch.device | str) -> SingleDeviceStrategy:
    """One process on one device."""
    return SingleDeviceStrategy(device=device)
