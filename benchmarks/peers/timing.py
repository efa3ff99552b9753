"""Repeat, and keep the median."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable

import numpy as np
import torch


def median_ms(run: Callable[[], None], device: str, seconds: float = 4.0) -> float:
    """Median time of a call, ms, over about ``seconds`` and at least five calls after three to warm up.

    A call that takes longer than ``seconds`` is made three times, the first to warm up.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    start = time.perf_counter()
    run()
    wait()
    slow = time.perf_counter() - start > seconds
    for _ in range(0 if slow else 2):
        run()
    wait()
    times: list[float] = []
    while len(times) < (2 if slow else 5) or sum(times) < seconds:
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def start_memory(device: str) -> None:
    """Begin to watch the memory of the device; on the CPU the process's own peak counts."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb(device: str) -> float:
    """Peak memory since `start_memory`, MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def report(**figures: object) -> None:
    """One line of JSON, the last of the output."""
    print(json.dumps(figures))
