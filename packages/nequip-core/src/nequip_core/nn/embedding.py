"""Types as vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nequip_core.ops.promises import weights_are_constant


def one_hot(types: Int[Tensor, "atoms"], num_types: int, dtype: torch.dtype) -> Float[Tensor, "atoms types"]:
    """1 at each atom's type. ``one_hot @ table`` takes rows of a table; its derivative is a deterministic sum."""
    return (types.unsqueeze(1) == torch.arange(num_types, device=types.device)).to(dtype)


def of_types(table: Float[Tensor, "types *rest"], types: Int[Tensor, "atoms"]) -> Float[Tensor, "atoms *rest"]:
    """Each atom's row of a table: taken, or where the table is trained, by a product with one-hot rows."""
    if weights_are_constant() or not table.requires_grad:
        return table.detach().index_select(0, types)
    return one_hot(types, table.shape[0], table.dtype) @ table
