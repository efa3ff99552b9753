"""Launches of generated kernels, in eager execution and where torch traces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from nequip_core.ops.direct import is_observed
from nequip_kernels import sources
from nequip_kernels.blocks import Block


def launched(tensor: Tensor) -> bool:
    """Whether a kernel runs on a tensor: on CUDA, and in Triton's interpreter (for tests)."""
    return tensor.device.type == "cuda" or interpreted()


def interpreted() -> bool:
    """Whether this process has Triton's interpreter instead of its compiler."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As kernels read them; copies what is not."""
    return _in_memory([tensor.contiguous() for tensor in tensors])


def rows_in_memory(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As kernels read them that know where the next row begins: a part of the columns of another tensor is no copy."""
    return _in_memory(
        [tensor if tensor.shape[1] == 1 or tensor.stride(1) == 1 else tensor.contiguous() for tensor in tensors]
    )


def _in_memory(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The same, so that Inductor computes each once.

    Where a kernel reads the result of elementwise operations, Inductor writes that result anew for each kernel that
    reads it. The input of a view with given strides it writes once, for all.
    """
    return tuple(map(_with_given_strides, tensors) if is_observed() else tensors)


def _with_given_strides(tensor: Tensor) -> Tensor:
    offset = tensor.storage_offset()
    if not isinstance(offset, int) or offset != 0:
        return tensor  # a part of another, which is in memory already
    return tensor.as_strided(tensor.size(), tensor.stride(), 0)


def like(tensor: Tensor) -> Tensor:
    """To be written, contiguous whatever ``tensor`` is."""
    return tensor.new_empty(tensor.shape)


_COMPILING_ONLY: ContextVar[bool] = ContextVar("compiling_only", default=False)


@contextmanager
def compiling_only() -> Iterator[None]:
    """In this block kernels are compiled, into Triton's cache, and not launched; tensors may be those of ``meta``."""
    token = _COMPILING_ONLY.set(True)
    try:
        yield
    finally:
        _COMPILING_ONLY.reset(token)


class Functions:
    """The functions of a generated file, compiled by Triton at the first launch.

    Args:
        source: makes the file's text.
    """

    def __init__(self, source: Callable[[], str]) -> None:
        self.source = source
        self.sized: dict[str, Any] = {}

    @cached_property
    def module(self) -> ModuleType:
        """The functions as they were written."""
        return sources.load(self.source())

    def launch(self, name: str, grid: tuple[Any, int], sizes: Mapping[str, int], block: Block, *arguments: Any) -> None:
        """Run one function.

        Args:
            name: of the function; it has the same sizes at every call.
            grid: programs, and blocks of channels.
            sizes: constants of the function.
            block: warps and stages of a program.
            arguments: all others, in order.
        """
        if not is_observed():
            # One configuration needs none of Triton's tuner and none of torch's wrapper, which cost more than a launch.
            constants = {**sizes, "num_warps": block.warps, "num_stages": block.stages}
            if _COMPILING_ONLY.get():
                kinds = [one.dtype if isinstance(one, Tensor) else one for one in arguments]
                getattr(self.module, name).warmup(*kinds, grid=grid, **constants)
                return
            with _device_of(arguments[0]):
                getattr(self.module, name)[grid](*arguments, **constants)
            return
        if name not in self.sized:
            import triton

            # One configuration, so nothing is measured; torch's compilers know this form of a constant.
            one = triton.Config(dict(sizes), num_warps=block.warps, num_stages=block.stages)
            self.sized[name] = triton.autotune([one], key=[])(getattr(self.module, name))
        wrap_triton(self.sized[name])[grid](*arguments)


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of a tensor; compiled code sees to that itself."""
    elsewhere = tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if elsewhere else nullcontext()
