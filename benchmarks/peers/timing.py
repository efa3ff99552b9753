"""Repeat, and keep the median."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

SECONDS = "BENCHMARK_SECONDS"
"""Environment variable: of timing for each figure."""


def median_ms(run: Callable[[], None], device: str) -> float:
    """Median time of a call, ms, over about `SECONDS` (4) and at least five calls after three to warm up.

    A call that takes longer than that is made three times, the first to warm up.
    """
    seconds = float(os.environ.get(SECONDS, "4"))
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
    """Begin to watch the memory of the device; on the CPU that of the process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # its peak is what it is now


def peak_memory_mb(device: str) -> float:
    """Peak memory since `start_memory`, MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1e3


def report(**figures: object) -> None:
    """One line of JSON."""
    print(json.dumps(figures), flush=True)


def answer(measure: Callable[[], dict[str, float]]) -> None:
    """Measure whenever a line comes in, until there is no more."""
    for _ in sys.stdin:
        report(**measure())
