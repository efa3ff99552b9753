"""Generated source becomes a module. Triton reads the text of its functions from a file, so each has one.

The files are in the folder of caches (``NEQUIP_CACHE_DIR``), named by the hash of their text: the same couplings are
the same file in all processes and runs. Nothing but the text that was just made is executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from nequip_core.data.cache import folder_of
from nequip_core.files import atomic_write


def fingerprint(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder() -> Path:
    """Where sources and tuned block sizes are kept."""
    chosen = folder_of("auto")
    assert chosen is not None
    return chosen / "kernels"


@cache
def load(text: str) -> ModuleType:
    """The module of a generated text; needs triton.

    Raises:
        InputError: the folder of caches can not be written to.
    """
    name = f"nequip_kernels_{fingerprint(text)}"
    path = folder() / f"{name}.py"
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # torch and triton look a function's module up by its name
    spec.loader.exec_module(module)
    return module
