"""Deterministic gathers and sums: values, derivatives of first and second order, repeatability."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nequip_core.ops.segment import PIECE, gather, segment_sum, sum_long_segments


def segments(rows: int = 40, count: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Unsorted index, ptr and order; segment 3 is empty."""
    index = torch.randint(0, count, (rows,))
    index[index == 3] = 4
    order = index.argsort(stable=True)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), index.bincount(minlength=count).cumsum(0)])
    return index, ptr, order


def test_segment_sum_and_gather() -> None:
    index, ptr, order = segments()
    x = torch.randn(40, 2, 3, dtype=torch.float64)
    expected = torch.stack([x[index == s].sum(0) for s in range(7)])
    torch.testing.assert_close(segment_sum(x, index, ptr, order), expected)
    y = torch.randn(7, 5)
    assert torch.equal(gather(y, index, ptr, order), y[index])


def test_sorted_rows_need_no_order() -> None:
    index, ptr, order = segments()
    x = torch.randn(40, 3, dtype=torch.float64)
    sorted_sum = segment_sum(x[order], index[order], ptr)
    torch.testing.assert_close(sorted_sum, segment_sum(x, index, ptr, order))


def test_no_rows() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    out = segment_sum(torch.zeros(0, 3), nothing, torch.zeros(5, dtype=torch.int64), nothing)
    assert torch.equal(out, torch.zeros(4, 3))


def test_first_and_second_derivatives() -> None:
    index, ptr, order = segments(12, 5)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    e = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor, e: Tensor) -> Tensor:
        return segment_sum((gather(x, index, ptr, order) * e).sin(), index, ptr, order)

    assert torch.autograd.gradcheck(f, (x, e))
    assert torch.autograd.gradgradcheck(f, (x, e))


def test_gradients_are_repeatable_with_two_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        index, ptr, order = segments(20000, 50)
        x = torch.randn(50, 64, requires_grad=True)
        weight = torch.randn(20000, 64)
        gradients = [torch.autograd.grad((gather(x, index, ptr, order) * weight).sum(), x)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(g, gradients[0]) for g in gradients)


@pytest.mark.parametrize(
    "lengths",
    [(0,), (1,), (PIECE,), (PIECE + 1,), (0, 3, 0), (PIECE - 1, 1, PIECE, 5), (5, 40 * PIECE + 7, 0, 0), (1,) * 300],
    ids=str,
)
def test_long_segments_are_summed_in_pieces(lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1000, 1000, (sum(lengths), 3), generator=generator).double()  # whose sums are exact
    ptr = torch.tensor([0, *lengths]).cumsum(0)
    index = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    torch.testing.assert_close(sum_long_segments(x, ptr), segment_sum(x, index, ptr), rtol=0, atol=0)
