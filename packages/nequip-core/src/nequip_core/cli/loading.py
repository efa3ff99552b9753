"""What the commands that use a model do first: load it and say which it is. Imported when a command runs."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from nequip_core.export.artifact import LoadedModel, inspect_model, load_model
from nequip_core.plugins.manager import load_registry


def say(message: str) -> None:
    """A remark for people, on standard error; standard output is for results."""
    print(message, file=sys.stderr, flush=True)


def load(options: argparse.Namespace, *, device: str, speaks: bool = True, **how: Any) -> LoadedModel:
    """The model that ``add_model``'s options name; says which checkpoint, weights and device it took.

    ``how``: further arguments of `nequip_core.export.artifact.load_model`.
    """
    which = {"checkpoint": options.checkpoint, "weights": options.weights, "registry": load_registry()}
    loaded = load_model(options.model, device=device, **which, **how)
    return _said(loaded) if speaks else loaded


def inspect(options: argparse.Namespace) -> LoadedModel:
    """The same, to be read about only."""
    which = {"checkpoint": options.checkpoint, "weights": options.weights, "registry": load_registry()}
    return _said(inspect_model(options.model, **which))


def _said(loaded: LoadedModel) -> LoadedModel:
    what = f"checkpoint {loaded.checkpoint}" if loaded.checkpoint else loaded.kind
    say(f"model: {loaded.path} ({what}, {loaded.weights} weights) on {loaded.device}, {loaded.info.dtype}")
    return loaded


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag instead of breaking a step; a second one breaks. Gives the function that reads the flag."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
