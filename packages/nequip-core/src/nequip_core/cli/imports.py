"""The imports of commands that need torch or Lightning, which take most of their start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """Import without the search for reference cycles, before and after.

    Modules stay until the end, and there are 400,000 objects of them: looking through these again and again takes a
    fifth of the time of the imports, and as long as a short step at each full search of a training. So Python does not
    search meanwhile, and leaves out what there is by then afterwards.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if searching:
            gc.enable()
