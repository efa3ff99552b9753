"""Errors in the words of both sides: OpenMM's scripts catch OpenMMException, our commands catch NequipError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import openmm

from nequip_core.errors import InputError, NequipError


class OpenMMError(InputError, openmm.OpenMMException):  # type: ignore[misc]  # OpenMM has no types
    """Something can not be used in OpenMM; the message says what, and what to do."""


@contextmanager
def as_openmm() -> Iterator[None]:
    """Errors that a user can cause become `OpenMMError`; also a decorator."""
    try:
        yield
    except OpenMMError:
        raise
    except NequipError as error:
        raise OpenMMError(str(error)) from error
