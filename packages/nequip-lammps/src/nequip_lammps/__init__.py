"""Models of nequip-core in LAMMPS: ``pair_style nequip`` and ``pair_style allegro``.

What LAMMPS loads is C++, in ``cpp``: a shim that knows LAMMPS' headers and no torch, and a core that knows torch and no
LAMMPS. Here is what finds them, compiles them where no fitting ones are there, and checks a LAMMPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nequip_lammps.inject import register

__all__ = ["register"]


def __getattr__(name: str) -> Any:
    """Import `register` when it is asked for: every start of LAMMPS imports this package."""
    if name != "register":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nequip_lammps.inject import register

    return register
