"""Gathers and sums over edges, deterministic, each the other's adjoint.

PyTorch differentiates ``x[index]`` into an accumulation in arbitrary order: with two threads or on a GPU a float32
training step differs from run to run. Here both directions are a sum over consecutive rows (or over rows listed by a
permutation), so that every step is repeatable, and derivatives of any order are again these two operators.

``index`` [rows] says which segment each row belongs to; ``ptr`` [segments + 1] and ``order`` [rows] list each segment's
rows: rows ``order[ptr[s]:ptr[s + 1]]`` have index s. ``order=None``: rows are sorted already.

They are operators of torch's dispatcher, ``torch.ops.nequip.gather`` and ``torch.ops.nequip.segment_sum``, so that a
traced graph holds them as single nodes which still know their derivatives. Where nothing is traced they are called
directly (`nequip_core.ops.direct`).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nequip_core.ops.direct import Direct

_LIBRARY = torch.library.Library("nequip", "DEF")  # operators live as long as this object
_SIGNATURE = "(Tensor x, Tensor index, Tensor ptr, Tensor? order=None) -> Tensor"


def gather(
    x: Float[Tensor, "segments *rest"],
    index: Int[Tensor, "rows"],
    ptr: Int[Tensor, "segments_and_one"],
    order: Int[Tensor, "rows"] | None = None,
) -> Float[Tensor, "rows *rest"]:
    """``x[index]``; its derivative is `segment_sum`."""
    out: Tensor = _GATHER(x, index, ptr, order)
    return out


def segment_sum(
    x: Float[Tensor, "rows *rest"],
    index: Int[Tensor, "rows"],
    ptr: Int[Tensor, "segments_and_one"],
    order: Int[Tensor, "rows"] | None = None,
) -> Float[Tensor, "segments *rest"]:
    """Sum of the rows of each segment, in the order of the rows; zero where a segment has none."""
    out: Tensor = _SEGMENT_SUM(x, index, ptr, order)
    return out


def take_rows(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None = None) -> Tensor:
    """What `gather` computes, in torch's own operators."""
    return x.index_select(0, index)


def sum_rows(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None = None) -> Tensor:
    """What `segment_sum` computes, in torch's own operators."""
    segments = ptr.shape[0] - 1
    if x.device.type == "cpu":
        # index_add over the first dimension adds row after row: deterministic on the CPU, and needs no permutation.
        return x.new_zeros(segments, *x.shape[1:]).index_add(0, index, x)
    if x.shape[0] == 0 or x[:1].numel() == 0:
        return x.new_zeros(segments, *x.shape[1:])
    if segments == 1:
        return x.sum(0, keepdim=True)  # of all rows, in an order that their number fixes
    return sum_bags(x, index, ptr, order)


def sum_bags(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None = None) -> Tensor:
    """What `segment_sum` computes, by one operator that every device has and that asks for no size.

    One thread of it sums one column of one segment in the order of the rows, where index_add on a GPU would be atomic.
    The pointers must end with the number of rows: on CUDA the last segment does, whatever they say.
    """
    rows = torch.arange(x.shape[0], device=x.device) if order is None else order
    flat = x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    mode, last_is_end = 0, True  # sums; ptr has one more number than there are segments
    bags: Tensor = torch.ops.aten._embedding_bag_forward_only.default(
        flat.contiguous(), rows, ptr, False, mode, False, None, last_is_end
    )[0]
    return bags.reshape(ptr.shape[0] - 1, *x.shape[1:])


PIECE = 128
"""Rows that one thread sums in `sum_long_segments`."""


def sum_long_segments(x: Tensor, ptr: Tensor) -> Tensor:
    """What `segment_sum` computes of sorted rows, in torch's own operators, where a segment may be all rows.

    A thread of `sum_bags` takes 0.3 us for a row on an H100, one after the other. So segments are cut at every multiple
    of `PIECE` first, and then the sums of pieces are summed: in an order that sizes and pointers fix.
    """
    rows = x.shape[0]
    cut = (torch.arange(rows // PIECE + 2, device=x.device) * PIECE).clamp(max=rows)  # 2 or more, as tracers assume
    # Where pointers and cuts stand when both are sorted together; a pointer comes before its equal.
    place = torch.arange(ptr.shape[0], device=x.device) + (ptr + PIECE - 1) // PIECE
    of_cut = torch.arange(cut.shape[0], device=x.device) + torch.searchsorted(ptr, cut, right=True)
    ends = torch.cat([ptr, cut])
    pieces = sum_bags(x, ptr, torch.zeros_like(ends).scatter(0, torch.cat([place, of_cut]), ends))
    return sum_bags(pieces, ptr, place)


def _shape_of_gather(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None = None) -> Tensor:
    return x.new_empty(index.shape[0], *x.shape[1:])


def _shape_of_sum(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None = None) -> Tensor:
    return x.new_empty(ptr.shape[0] - 1, *x.shape[1:])


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return segment_sum(grad, *ctx.saved_tensors), None, None, None


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return gather(grad, *ctx.saved_tensors), None, None, None


for _name, _compute, _shape, _backward in (
    ("gather", take_rows, _shape_of_gather, _gather_backward),
    ("segment_sum", sum_rows, _shape_of_sum, _sum_backward),
):
    _LIBRARY.define(f"{_name}{_SIGNATURE}")
    _LIBRARY.impl(_name, _compute, "CPU")
    _LIBRARY.impl(_name, _compute, "CUDA")
    torch.library.register_fake(f"nequip::{_name}", _shape, lib=_LIBRARY)
    torch.library.register_autograd(f"nequip::{_name}", _backward, setup_context=_keep_rows, lib=_LIBRARY)

_GATHER = Direct(torch.ops.nequip.gather.default, take_rows, _keep_rows, _gather_backward)
_SEGMENT_SUM = Direct(torch.ops.nequip.segment_sum.default, sum_rows, _keep_rows, _sum_backward)
