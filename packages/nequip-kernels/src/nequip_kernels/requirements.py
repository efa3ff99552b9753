"""What every kernel here needs of the machine, as sentences for those that ask why one was refused."""

from __future__ import annotations

import importlib.util

import torch

CAPABILITY = (8, 0)
"""Least compute capability: A100 and later."""


def missing(device: torch.device) -> str | None:
    """Why no kernel can run on a device; None: they can."""
    if device.type != "cuda":
        return f"runs on cuda, not on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (torch's CUDA builds bring it: pip install triton)"
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(device)
        if capability < CAPABILITY:
            return (
                f"needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or higher, "
                f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
            )
    return None
