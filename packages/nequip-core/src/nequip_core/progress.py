"""How long work says where it is: readers, neighbour lists, statistics and evaluation call a function that somebody
above gave them, and know nothing of terminals.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called after each piece of work, as often as there are pieces; whoever shows it decides how often.

    Another ``what`` than before begins another bar.
    """

    def __call__(self, what: str, done: int, total: int | None = None) -> None:
        """Say that ``done`` of ``total`` pieces are over.

        Args:
            what: the work, such as ``reading water.xyz`` or ``neighbour lists``.
            done: pieces so far.
            total: of all; None where nobody knows before the end.
        """
        ...


def silent(what: str, done: int, total: int | None = None) -> None:
    """Tell nobody."""
