"""What `Potential` promises of the derivatives of what is computed in it, so that less needs to be computed.

A promise holds in the thread and in the block where it is made. Where something is traced, none is made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Here(threading.local):
    constant_weights = False
    vectors_once = False


_here = _Here()


def weights_are_constant() -> bool:
    """Whether nothing is differentiated by weights."""
    return _here.constant_weights


def vectors_are_differentiated_once() -> bool:
    """Whether there is one derivative by the edge vectors, which itself is differentiated by weights only."""
    return _here.vectors_once


@contextmanager
def promised(*, constant_weights: bool, vectors_once: bool) -> Iterator[None]:
    """In this block what the two functions above say is so, or not."""
    before = _here.constant_weights, _here.vectors_once
    _here.constant_weights, _here.vectors_once = constant_weights, vectors_once
    try:
        yield
    finally:
        _here.constant_weights, _here.vectors_once = before
