"""Gathers and sums over edges, deterministic, each the other's adjoint.

PyTorch differentiates ``x[index]`` into an accumulation in arbitrary order: with two threads or on a GPU a float32
training step differs from run to run. Here both directions are a sum over consecutive rows (or over rows listed by a
permutation), so that every step is repeatable, and derivatives of any order are again these two operators.

``index`` [rows] says which segment each row belongs to; ``ptr`` [segments + 1] and ``order`` [rows] list each segment's
rows: rows ``order[ptr[s]:ptr[s + 1]]`` have index s. ``order=None``: rows are sorted already.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gather(
    x: Float[Tensor, "segments *rest"],
    index: Int[Tensor, "rows"],
    ptr: Int[Tensor, "segments_and_one"],
    order: Int[Tensor, "rows"] | None = None,
) -> Float[Tensor, "rows *rest"]:
    """``x[index]``; its derivative is `segment_sum`."""
    out: Tensor = _Gather.apply(x, index, ptr, order)  # type: ignore[no-untyped-call]
    return out


def segment_sum(
    x: Float[Tensor, "rows *rest"],
    index: Int[Tensor, "rows"],
    ptr: Int[Tensor, "segments_and_one"],
    order: Int[Tensor, "rows"] | None = None,
) -> Float[Tensor, "segments *rest"]:
    """Sum of the rows of each segment, in the order of the rows; zero where a segment has none."""
    out: Tensor = _SegmentSum.apply(x, index, ptr, order)  # type: ignore[no-untyped-call]
    return out


def _sum_rows(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None) -> Tensor:
    segments = ptr.shape[0] - 1
    if x.device.type == "cpu":
        # index_add over the first dimension adds row after row: deterministic on the CPU, and needs no permutation.
        return x.new_zeros(segments, *x.shape[1:]).index_add(0, index, x)
    # Elsewhere index_add is atomic. One thread of embedding_bag sums one column of one bag in order.
    if x.shape[0] == 0 or x[:1].numel() == 0:
        return x.new_zeros(segments, *x.shape[1:])
    rows = torch.arange(x.shape[0], device=x.device) if order is None else order
    flat = x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    bags = torch.nn.functional.embedding_bag(rows, flat.contiguous(), ptr, mode="sum", include_last_offset=True)
    return bags.reshape(segments, *x.shape[1:])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None) -> Tensor:
        return x.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, ptr, order = inputs
        ctx.save_for_backward(index, ptr, order)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _SegmentSum.apply(grads[0], *ctx.saved_tensors), None, None, None  # type: ignore[no-untyped-call]


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor | None) -> Tensor:
        return _sum_rows(x, index, ptr, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, ptr, order = inputs
        ctx.save_for_backward(index, ptr, order)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _Gather.apply(grads[0], *ctx.saved_tensors), None, None, None  # type: ignore[no-untyped-call]
