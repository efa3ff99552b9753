"""Repeat, and keep the median."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np


def median_ms(run: Callable[[], None], repeats: int = 15, warm_up: int = 4) -> float:
    """Median time of a call, ms."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def report(**figures: object) -> None:
    """One line of JSON, the last of the output."""
    print(json.dumps(figures))
