"""Inductor's options where the processor only launches a GPU's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor import cpu_vec_isa

OPTIONS: dict[str, Any] = {
    # Otherwise Inductor asks which vector instructions the compiler and this processor know. Each answer takes a Python
    # that imports torch, at every start again, whatever its caches hold: ten of them were 46 s (H100, torch 2.11,
    # 2026-11-26).
    "cpp.vec_isa_ok": False,
}


@contextmanager
def launching(device: torch.device) -> Iterator[None]:
    """For code that is compiled in this block, with `OPTIONS` where ``device`` is a GPU.

    Inductor remembers that there are no vector instructions. Code for the processor is to have them afterwards.
    """
    try:
        yield
    finally:
        if device.type != "cpu":
            kinds = {kind for isa in cpu_vec_isa.supported_vec_isa_list for kind in type(isa).__mro__}
            answers: list[Any] = [cpu_vec_isa.valid_vec_isa_list, *(vars(kind).get("__bool__") for kind in kinds)]
            for remembered in answers:
                if hasattr(remembered, "cache_clear"):
                    remembered.cache_clear()
