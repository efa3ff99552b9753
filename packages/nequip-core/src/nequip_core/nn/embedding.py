"""Types as vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def one_hot(types: Int[Tensor, "atoms"], num_types: int, dtype: torch.dtype) -> Float[Tensor, "atoms types"]:
    """1 at each atom's type. ``one_hot @ table`` takes rows of a table; its derivative is a deterministic sum."""
    return (types.unsqueeze(1) == torch.arange(num_types, device=types.device)).to(dtype)
