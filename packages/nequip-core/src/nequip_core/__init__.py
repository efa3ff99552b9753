"""Deep equivariant interatomic potentials: structures to graphs, models, training and simulation.

`load` is all that most scripts need::

    import nequip_core
    potential = nequip_core.load("MODEL", device="auto")
    prediction = potential([atoms, ...])     # energies, forces, virials in eV and Å
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nequip_core.engines.evaluate import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is asked for, so that ``import nequip_core`` needs no torch."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nequip_core.engines.evaluate import load

    return load
