"""What all tests need."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest

from nequip_core.data.cache import ENVIRONMENT


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the home folder; what Inductor compiles is there for all workers."""
    base = tmp_path_factory.getbasetemp()
    of_all = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(of_all / "inductor"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _little_garbage() -> Iterator[None]:
    """Torch makes many objects while it traces; Python would spend a tenth of that time on looking at them again."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    yield
    gc.set_threshold(*before)


@contextmanager
def _unobserved() -> Iterator[None]:
    """Nothing in this block counts as covered."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


def _unobserving(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **keys: Any) -> Any:
        with _unobserved():
            return function(*args, **keys)

    return call


@pytest.fixture(autouse=True, scope="session")
def _libraries_at_work() -> Iterator[None]:
    """Coverage does not watch torch compile, Hydra compose or figures drawn: it would double the time (Python 3.11)."""
    if sys.gettrace() is None:
        yield
        return
    import torch
    from hydra.core.config_store import ConfigStore
    from matplotlib.figure import Figure

    import nequip_core.config.compose
    import nequip_core.tracing
    from nequip_core.training.compiled import CompiledFunction

    make_fx, compiling = nequip_core.tracing.make_fx, CompiledFunction.compiling

    @contextmanager
    def unobserved_compiling(compiled: CompiledFunction) -> Iterator[None]:
        with compiling(compiled), _unobserved():
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nequip_core.tracing, "make_fx", lambda *args, **keys: _unobserving(make_fx(*args, **keys)))
        patch.setattr(CompiledFunction, "compiling", unobserved_compiling)
        for owner, name in (
            (torch.export, "export"),
            (torch.library, "opcheck"),
            (torch._inductor, "aoti_compile_and_package"),
            (nequip_core.config.compose, "hydra_compose"),
            (ConfigStore, "store"),
            (Figure, "savefig"),
        ):
            patch.setattr(owner, name, _unobserving(getattr(owner, name)))
        yield
